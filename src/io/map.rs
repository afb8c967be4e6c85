//! Private, copy-on-write mappings of files.

use std::sync::{Arc, Weak};

use memmap2::{MmapOptions, MmapRaw};

use super::{FileSource, Source};
use crate::error::{Error, IoContext, Result};

/// A whole file, mapped privately: reads come from the page cache on first touch, writes stay in this process.
///
/// Whoever truncates the file under a mapping makes later touches of the lost pages fatal (`SIGBUS`); replacing the
/// file by renaming another over it, as this crate writes files, leaves the mapping on the old bytes.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    alive: Arc<()>,
}

impl Mapping {
    /// Maps all of `source`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) or [`ErrorKind::Memory`](crate::ErrorKind::Memory) if the system
    /// refuses the mapping.
    pub fn new(source: &FileSource) -> Result<Self> {
        let len = usize::try_from(source.len())
            .map_err(|_| Error::argument("is larger than the address space").at(source.path()))?;
        // No swap is reserved: only pages that are written to ever need memory of their own, and reserving for all
        // would refuse models larger than memory.
        let mut options = MmapOptions::new();
        let options = options.len(len).no_reserve_swap();
        // SAFETY: the mapping is private, so this process's writes reach nobody else. Another process may still
        // change or truncate the file; no Rust reference to the bytes is ever made, only raw pointers leave here.
        let map = unsafe { options.map_copy(source.file()) }.during("cannot map", source.path())?;
        Ok(Self { map: map.into(), alive: Arc::new(()) })
    }

    /// Address of the file's first byte.
    #[must_use]
    pub fn data(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Tells whether the mapping still exists.
    #[must_use]
    pub fn watch(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// Length of the file when it was mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the file was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
