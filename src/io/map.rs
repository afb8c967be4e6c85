//! Private, copy-on-write mappings of files.

use std::{
    io,
    sync::{Arc, Weak},
};

use memmap2::{MmapOptions, MmapRaw};

use super::{FileSource, Files, Input, Pages, Source};
use crate::{
    error::{Error, IoContext, Result},
    os,
};

/// A whole file, or the payloads of several as [`Files`] lays them out, mapped privately: reads come from the page cache on first touch, writes stay in this process.
///
/// Whoever truncates the file under a mapping makes later touches of the lost pages fatal (`SIGBUS`); replacing the
/// file by renaming another over it, as this crate writes files, leaves the mapping on the old bytes. (Windows refuses both.)
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
    alive: Arc<()>,
}

impl Mapping {
    /// Maps all of `files`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) or [`ErrorKind::Memory`](crate::ErrorKind::Memory) if the system
    /// refuses the mapping.
    pub fn new(files: &Files) -> Result<Self> {
        if files.is_encoded() {
            let what = "cannot be mapped: its payload is compressed";
            return Err(Error::argument(what).at(files.path()));
        }
        let mut all = files.iter();
        match (all.next(), all.next()) {
            (Some((input, _)), None) => Self::of_file(file_of(input)?),
            _ => Self::of_files(files),
        }
    }

    fn of_file(source: &FileSource) -> Result<Self> {
        let len = usize::try_from(source.len())
            .map_err(|_| Error::argument("is larger than the address space").at(source.path()))?;
        // No swap is reserved: only pages that are written to ever need memory of their own, and reserving for all
        // would refuse models larger than memory.
        let mut options = MmapOptions::new();
        let options = options.len(len).no_reserve_swap();
        // SAFETY: the mapping is private, so this process's writes reach nobody else. Another process may still
        // change or truncate the file; no Rust reference to the bytes is ever made, only raw pointers leave here.
        let map = source.file().and_then(|file| unsafe { options.map_copy(&*file) });
        let map = map.during("cannot map", source.path())?;
        Ok(Self { map: map.into(), alive: Arc::new(()) })
    }

    /// Maps each payload over its place, which begins with a page, in a reservation of all.
    fn of_files(files: &Files) -> Result<Self> {
        let end = files.iter().map(|(_, place)| place.end).max().unwrap_or(0);
        let len = usize::try_from(end)
            .map_err(|_| Error::argument("is larger than the address space").at(files.path()))?;
        let reservation = MmapOptions::new().len(len).no_reserve_swap().map_anon();
        let map = MmapRaw::from(reservation.during("cannot map", files.path())?);
        for (input, place) in files.iter().filter(|(_, place)| !place.is_empty()) {
            let file = file_of(input)?;
            let offset = usize::try_from(place.start).expect("within the reservation");
            let bytes = usize::try_from(place.end - place.start).expect("within the reservation");
            // Nobody has seen the reservation yet, and as indices are joined at multiples of pages, no two files share one.
            let mapped = file.file().and_then(|open| os::map_over(&map, offset, bytes, &open));
            mapped.during("cannot map", file.path())?;
        }
        Ok(Self { map, alive: Arc::new(()) })
    }

    /// Makes a touch bring in as much as a disk needs to be busy, for whoever will touch most of it.
    pub fn read_ahead(&self) {
        // Without that, a touch only brings in less.
        let _ = fault_huge_pages(&self.map);
    }

    /// Has the kernel, when it needs memory, take pages that were touched before those that were only read, for a file that
    /// is larger than memory.
    pub fn forget_touched(&self) {
        os::forget_touched(&self.map);
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

    /// Length of what was mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether that was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Makes each fault of `map` read the huge page around it and the next one, whatever the device's read-ahead is, into huge
/// pages where the file system has them.
///
/// # Errors
/// The system has no huge pages of a useful size.
pub(super) fn fault_huge_pages(map: &MmapRaw) -> io::Result<()> {
    if Pages::here().huge_bytes.is_none() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    os::fault_huge_pages(map)
}

/// The file that can be mapped.
fn file_of(input: &Input) -> Result<&FileSource> {
    input.file().ok_or_else(|| Error::argument("cannot be mapped: it is no file").at(input.path()))
}
