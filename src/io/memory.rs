//! A source in memory: the obvious implementation that others are compared with, and the one that can fail on demand.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::Source;
use crate::os::{self, errno};

/// What goes wrong in a [`MemorySource`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Reads return at most this many bytes; 0 means no limit.
    pub short_reads: usize,
    /// Every n-th read is interrupted (`EINTR`) before it reads; 0 means never.
    pub interrupt_every: u64,
    /// The n-th read, counted from 1, fails with `EIO`; 0 means none does.
    pub fail_read: u64,
    /// The bytes end here, although [`Source::len`] promised more.
    pub truncate_at: Option<usize>,
}

/// Bytes in memory, with [`Faults`].
#[derive(Debug)]
pub struct MemorySource {
    bytes: Vec<u8>,
    faults: Faults,
    reads: AtomicU64,
}

impl MemorySource {
    /// A source of `bytes` that never fails.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::with_faults(bytes, Faults::default())
    }

    /// A source of `bytes` that fails as told.
    #[must_use]
    pub const fn with_faults(bytes: Vec<u8>, faults: Faults) -> Self {
        Self { bytes, faults, reads: AtomicU64::new(0) }
    }
}

impl Source for MemorySource {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.faults.interrupt_every > 0 && read.is_multiple_of(self.faults.interrupt_every) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if read == self.faults.fail_read {
            return Err(os::error_of(errno::EIO));
        }
        let end = self.faults.truncate_at.unwrap_or(usize::MAX).min(self.bytes.len());
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
        let limit = if self.faults.short_reads == 0 { usize::MAX } else { self.faults.short_reads };
        let count = buffer.len().min(end - start).min(limit);
        buffer[..count].copy_from_slice(&self.bytes[start..start + count]);
        Ok(count)
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn path(&self) -> &Path {
        Path::new("(memory)")
    }
}
