//! Reading past the page cache.

use std::{
    io::{self, IoSliceMut},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    io::{FileSource, Source},
    os::{errno, is_any_of},
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

    /// The file as opened at first.
    #[must_use]
    pub const fn buffered(&self) -> &FileSource {
        &self.buffered
    }
}

/// Memory for one unit of direct reads.
#[repr(align(4096))]
struct Unit([u8; UNIT_BYTES]);

const UNIT_BYTES: usize = 4096;
const _: () = assert!(UNIT_BYTES as u64 == DIRECT_ALIGN_BYTES && align_of::<Unit>() == UNIT_BYTES);

impl DirectFile {
    /// Fills `buffer`, which lies in its units as `offset` does in the file's, in one request: the units at its ends, of
    /// which it is not to have the whole, by way of memory of their own.
    fn read_units(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let phase = within_unit(offset);
        if phase == 0 && buffer.len().is_multiple_of(UNIT_BYTES) {
            return self.direct.read_at(buffer, offset);
        }
        let head = if phase > 0 { buffer.len().min(UNIT_BYTES - phase) } else { 0 };
        let tail = (buffer.len() - head) % UNIT_BYTES;
        let (mut first, mut last) = (Unit([0; UNIT_BYTES]), Unit([0; UNIT_BYTES]));
        let (head_part, rest) = buffer.split_at_mut(head);
        let (whole, tail_part) = rest.split_at_mut(rest.len() - tail);
        let mut slices = [&mut first.0[..], whole, &mut last.0].map(IoSliceMut::new);
        let wanted = usize::from(head == 0)..3 - usize::from(tail == 0);
        let skipped = if head > 0 { phase } else { 0 };
        let read = self.direct.read_vectored_at(&mut slices[wanted], offset - skipped as u64)?;
        head_part.copy_from_slice(&first.0[skipped..skipped + head]);
        tail_part.copy_from_slice(&last.0[..tail]);
        Ok(read.saturating_sub(skipped).min(head + whole.len() + tail))
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
        match self.read_units(buffer, offset) {
            // Not even the unit that it begins in: the end, or a few bytes at a time.
            Ok(0) => self.buffered.read_at(buffer, offset),
            Err(error) if is_any_of(&error, &[errno::EINVAL]) => {
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
