//! Host memory with the properties the read engine wants.

use memmap2::{MmapMut, MmapOptions};

use super::Pages;
use crate::{
    error::{Error, ErrorKind, Result},
    os,
};

/// Zeroed private memory, page-aligned, and on huge pages when it is large enough for one: filling it then takes one
/// page fault for (mostly) 2 MiB instead of 512, which is what limits reads into fresh memory.
#[derive(Debug)]
pub struct HostBuffer {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl HostBuffer {
    /// Reserves `len` bytes. Pages take memory only once they are written to.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] if the address space or the system's limits do not allow it.
    pub fn new(len: usize) -> Result<Self> {
        Self::on(Pages::here(), len)
    }

    /// [`HostBuffer::new`] on a machine with such pages.
    ///
    /// # Errors
    /// As there.
    pub fn on(pages: Pages, len: usize) -> Result<Self> {
        let huge = pages.huge_bytes.filter(|huge| len >= *huge);
        let reserve = len.max(1).checked_add(huge.unwrap_or(0));
        let map = reserve.ok_or_else(|| refused(len, "too large")).and_then(|reserve| {
            MmapOptions::new().len(reserve).map_anon().map_err(|error| refused(len, &error.to_string()))
        })?;
        let start = huge.map_or(0, |huge| map.as_ptr().align_offset(huge));
        if huge.is_some() {
            // Advice: a kernel without huge pages serves small ones, slower.
            os::take_huge_pages(&map);
        }
        Ok(Self { map, start, len })
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets no child process share the pages: a write after `fork` would give this process other pages than the ones
    /// that a device, or a direct read under way, has been told of.
    pub(crate) fn keep_from_children(&self) {
        os::keep_from_children(&self.map);
    }

    /// Lets children that are forked from now on have the pages.
    pub(crate) fn share_with_children(&self) {
        os::share_with_children(&self.map);
    }

    /// Address of the first byte.
    pub fn data(&mut self) -> *mut u8 {
        self.as_mut_slice().as_mut_ptr()
    }
}

fn refused(len: usize, why: &str) -> Error {
    Error::new(ErrorKind::Memory, format!("cannot reserve {len} bytes of memory: {why}"))
}
