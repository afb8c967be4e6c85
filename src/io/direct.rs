//! Reading past the page cache, and deciding whether to.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, ReadWriteFlags},
};

use super::{FileSource, Source};

/// Offsets, lengths and addresses of direct reads are multiples of this: no file system asks for more.
const DIRECT_ALIGN_BYTES: usize = 4096;
/// Places of a file looked at to tell whether the page cache holds it.
const PROBES: u64 = 64;
/// Bytes read, timed, when the page cache seems not to hold a file.
const SAMPLE_BYTES: usize = 4 << 20;
/// A sample this fast came from memory whatever the kernel says (a network file system's own cache): 4 GB/s is more
/// than one thread gets from any disk.
const CACHED_BYTES_PER_NANOSECOND: u128 = 4;

/// A file, read with `O_DIRECT` wherever alignment allows and the file system does not refuse.
#[derive(Debug)]
pub struct DirectFile {
    buffered: FileSource,
    direct: File,
    refused: AtomicBool,
}

impl DirectFile {
    /// Opens the file of `buffered` a second time; gives it back if the file system refuses direct reads, or if
    /// another file has taken its path meanwhile.
    ///
    /// # Errors
    /// There is no failure, only the buffered file again.
    pub fn new(buffered: FileSource) -> Result<Self, FileSource> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        match rustix::fs::open(buffered.path(), flags, Mode::empty()) {
            Ok(direct) if same_file(buffered.file(), &direct) => {
                Ok(Self { buffered, direct: direct.into(), refused: AtomicBool::new(false) })
            }
            Ok(_) | Err(_) => Err(buffered),
        }
    }
}

fn same_file(one: &File, other: &impl std::os::fd::AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

impl Source for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let phase = usize::try_from(offset % DIRECT_ALIGN_BYTES as u64).expect("less than a page");
        let in_step = buffer.as_ptr().addr() % DIRECT_ALIGN_BYTES == phase;
        if !in_step || self.refused.load(Ordering::Relaxed) {
            return self.buffered.read_at(buffer, offset);
        }
        let head = (DIRECT_ALIGN_BYTES - phase) % DIRECT_ALIGN_BYTES;
        let whole = buffer.len().saturating_sub(head) / DIRECT_ALIGN_BYTES * DIRECT_ALIGN_BYTES;
        if whole == 0 {
            return self.buffered.read_at(buffer, offset);
        }
        if head > 0 {
            return self.buffered.read_at(&mut buffer[..head], offset);
        }
        match self.direct.read_at(&mut buffer[..whole], offset) {
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

    fn path(&self) -> &Path {
        self.buffered.path()
    }
}

/// Whether reading `file` would mostly find its bytes in memory.
#[must_use]
pub fn is_cached(file: &FileSource) -> bool {
    mostly_resident(file).is_none_or(|resident| resident || sample_is_fast(file))
}

/// Whether at least half of some probed pages can be read without waiting; `None` if the file system cannot tell.
pub(super) fn mostly_resident(file: &FileSource) -> Option<bool> {
    let probes = PROBES.min(file.len());
    let mut resident = 0;
    for probe in 0..probes {
        let offset = file.len() / probes * probe;
        let mut byte = [0];
        let mut slices = [io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(file.file(), &mut slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(_) => resident += 1,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(resident * 2 >= probes)
}

/// Whether a piece from the middle of the file arrives at the speed of memory.
fn sample_is_fast(file: &FileSource) -> bool {
    let mut buffer = vec![0; SAMPLE_BYTES];
    let started = Instant::now();
    let count = file.read_at(&mut buffer, file.len() / 2).unwrap_or(0);
    count as u128 > started.elapsed().as_nanos() * CACHED_BYTES_PER_NANOSECOND
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
    /// Decides once: direct if `wanted`, or if left open and the page cache does not hold the file.
    #[must_use]
    pub fn choose(file: FileSource, wanted: Option<bool>) -> Self {
        if wanted.unwrap_or_else(|| !is_cached(&file)) {
            DirectFile::new(file).map_or_else(Self::Buffered, Self::Direct)
        } else {
            Self::Buffered(file)
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

    /// Whether reads go past the page cache.
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
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

    fn path(&self) -> &Path {
        self.file().path()
    }
}
