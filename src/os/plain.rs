//! What happens on systems other than Linux instead of what only that does. Nothing is lost but speed, and URLs.

#![allow(clippy::unnecessary_wraps, reason = "signatures are those of Linux")]

use std::{
    collections::BTreeSet,
    ffi::{CStr, c_void},
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
    ptr::NonNull,
    thread,
};

use memmap2::{MmapMut, MmapRaw};

use super::{FileExt as _, FileSystem, errno, error_of};

#[cfg(any(feature = "cuda", feature = "remote", feature = "torch"))]
compile_error!(
    "the features `cuda`, `remote` and `torch` are for Linux; the others are for other systems, too"
);

/// No kernel tells of itself in files here. So nobody knows how much memory there is, and nothing is read ahead of a mapping.
pub(crate) const KERNEL_FILES: Option<&str> = None;

/// All files count as lying on a disk of this machine.
pub(crate) const fn file_system(_: &File) -> FileSystem {
    FileSystem::Local
}

/// No file takes direct reads: all go through the page cache.
pub(crate) const fn direct_units(_: &File) -> Option<[u32; 2]> {
    Some([0; 2])
}

/// See [`direct_units`].
pub(crate) fn open_direct(_: &Path) -> io::Result<File> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// As above.
pub(crate) fn open_again_direct(_: &File, path: &Path) -> io::Result<File> {
    open_direct(path)
}

/// Nor direct writes.
pub(crate) const fn open_to_write_direct(_: &File) -> Option<File> {
    None
}

/// Reads into the first of `slices` from `offset`.
pub(crate) fn read_vectored_at(file: &File, slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
    slices.first_mut().map_or(Ok(0), |slice| file.read_at(slice, offset))
}

/// Nobody tells what the page cache holds.
pub(crate) const fn can_be_read_at_once(_: &File, _: u64) -> Option<bool> {
    None
}

/// As above.
pub(crate) const fn may_be_cached(_: &MmapRaw, _: u64) -> bool {
    true
}

/// Nobody takes advice.
pub(crate) fn will_need(_: &File, _: &Range<u64>) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// As above.
pub(crate) const fn set_read_ahead(_: &File, _: bool) {}

/// As above: the final flush brings all to the disk.
pub(crate) const fn start_writeback(_: &File, _: u64, _: u64) {}

/// As above.
pub(crate) fn fault_huge_pages(_: &MmapRaw) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// As above.
pub(crate) const fn forget_touched(_: &MmapRaw) {}

/// As above.
pub(crate) fn populate(_: &MmapRaw) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// Memory is on pages of the usual size.
pub(crate) const fn huge_page_bytes() -> Option<usize> {
    None
}

/// As above.
pub(crate) const fn take_huge_pages(_: &MmapMut) {}

/// Nothing that children must not share: that is for direct reads and for devices.
pub(crate) const fn keep_from_children(_: &MmapMut) {}

/// As above.
pub(crate) const fn share_with_children(_: &MmapMut) {}

/// Nobody tells which pages were touched.
pub(crate) enum PageMap {}

impl PageMap {
    pub(crate) const fn open() -> Option<Self> {
        None
    }

    pub(crate) const fn is_touched(&self, _: u64) -> bool {
        match *self {}
    }
}

/// No file is without a name: each is written under a temporary one, and renamed.
pub(crate) const fn create_nameless(_: &Path, _: u32) -> io::Result<Option<File>> {
    Ok(None)
}

/// As above.
pub(crate) fn link(_: &File, _: &Path) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// Gives a new file its length, for which Windows takes space at once. Elsewhere a full disk shows when it is full.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}

/// How many threads can run at once.
pub(crate) fn parallelism() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Threads run where the system has them run.
pub(crate) const fn current_processor() -> Option<usize> {
    None
}

/// As above.
pub(crate) const fn allowed_processors() -> Option<BTreeSet<usize>> {
    None
}

/// As above.
pub(crate) fn allow_processors(_: &BTreeSet<usize>) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}

/// Of libraries that lie beside each other, none has stores.
pub(crate) const fn own_folder() -> Option<PathBuf> {
    None
}

/// As above.
pub(crate) fn function_of(_: &Path, _: &CStr) -> io::Result<NonNull<c_void>> {
    Err(error_of(errno::EOPNOTSUPP))
}
