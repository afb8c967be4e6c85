//! Reading past the page cache.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::Errno;

use super::{Asked, Probe, Route, Why};
use crate::{
    io::{FileSource, Source},
    plan::DIRECT_ALIGN_BYTES,
};

/// A file, read with `O_DIRECT` wherever the memory is aligned as the file and the file system does not refuse.
#[derive(Debug)]
pub struct DirectFile {
    buffered: FileSource,
    direct: FileSource,
    refused: AtomicBool,
}

impl DirectFile {
    /// Reads `buffered` past the page cache; gives it back if the file system refuses that.
    ///
    /// # Errors
    /// There is no failure, only the buffered file again.
    pub fn new(buffered: FileSource) -> Result<Self, FileSource> {
        match buffered.direct() {
            Ok(direct) => Ok(Self { buffered, direct, refused: AtomicBool::new(false) }),
            Err(_) => Err(buffered),
        }
    }
}

/// Memory for one unit of direct reads.
#[repr(align(4096))]
struct Unit([u8; UNIT_BYTES]);

const UNIT_BYTES: usize = 4096;
const _: () = assert!(UNIT_BYTES as u64 == DIRECT_ALIGN_BYTES && align_of::<Unit>() == UNIT_BYTES);

impl DirectFile {
    /// The beginning of `buffer` from the unit that `offset` lies in, of which it is not to have the whole.
    fn read_within_unit(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let phase = within_unit(offset);
        let mut unit = Unit([0; UNIT_BYTES]);
        let read = self.direct.read_at(&mut unit.0, offset - phase as u64)?;
        let bytes = unit.0[..read].get(phase..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }
}

fn within_unit(offset: u64) -> usize {
    usize::try_from(offset % DIRECT_ALIGN_BYTES).expect("less than a unit")
}

impl Source for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let phase = within_unit(offset);
        let in_step = buffer.as_ptr().addr() % UNIT_BYTES == phase;
        if !in_step || self.refused.load(Ordering::Relaxed) {
            return self.buffered.read_at(buffer, offset);
        }
        let whole = buffer.len() / UNIT_BYTES * UNIT_BYTES;
        let read = if phase > 0 || whole == 0 {
            self.read_within_unit(buffer, offset)
        } else {
            self.direct.read_at(&mut buffer[..whole], offset)
        };
        match read {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.refused.store(true, Ordering::Relaxed);
                self.buffered.read_at(buffer, offset)
            }
            result => result,
        }
    }

    fn len(&self) -> u64 {
        self.buffered.len()
    }

    fn is_direct(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    fn path(&self) -> &Path {
        self.buffered.path()
    }
}

/// The source that suits a load: `wanted`, or what the page cache suggests.
#[derive(Debug)]
pub enum Input {
    /// Through the page cache.
    Buffered(FileSource),
    /// Past it.
    Direct(DirectFile),
}

impl Input {
    /// Looks at `file`, and reads it by the way that `asked` takes then.
    #[must_use]
    pub fn choose(file: FileSource, asked: Asked<'_>) -> (Self, Route) {
        let route = Route::decide(&Probe::of(&file, asked), asked);
        if !route.direct {
            return (Self::Buffered(file), route);
        }
        match DirectFile::new(file) {
            Ok(file) => (Self::Direct(file), route),
            Err(file) => (Self::Buffered(file), Route { direct: false, why: Why::Refused, ..route }),
        }
    }

    /// The file, as opened at first.
    #[must_use]
    pub const fn file(&self) -> &FileSource {
        match self {
            Self::Buffered(file) => file,
            Self::Direct(file) => &file.buffered,
        }
    }

    /// The same, for whoever outlives the load.
    #[must_use]
    pub fn into_file(self) -> FileSource {
        match self {
            Self::Buffered(file) => file,
            Self::Direct(file) => file.buffered,
        }
    }
}

impl Source for Input {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Buffered(file) => file.read_at(buffer, offset),
            Self::Direct(file) => file.read_at(buffer, offset),
        }
    }

    fn len(&self) -> u64 {
        self.file().len()
    }

    fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(file) if file.is_direct())
    }

    fn path(&self) -> &Path {
        self.file().path()
    }
}
