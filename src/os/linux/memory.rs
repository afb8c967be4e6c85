//! Memory: huge pages, and which pages of a mapping are there.

use std::{fs, fs::File, io, os::unix::fs::FileExt as _};

use memmap2::{Advice, MmapMut, MmapRaw};

use crate::os::page_bytes;

/// Set in the entry of a page that the process has touched (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;

/// Bytes of a huge page, if there are any.
pub(crate) fn huge_page_bytes() -> Option<usize> {
    let told = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok();
    told.and_then(|text| text.trim().parse().ok())
}

/// Has the kernel take huge pages for `map`, if it has any.
pub(crate) fn take_huge_pages(map: &MmapMut) {
    let _ = map.advise(Advice::HugePage);
}

/// Makes each fault of `map` read the huge page around it and the next one, whatever the device's read-ahead is, into huge
/// pages where the file system has them; before Linux 5.18 it does nothing.
pub(crate) fn fault_huge_pages(map: &MmapRaw) -> io::Result<()> {
    map.advise(Advice::HugePage)
}

/// Has the kernel, when it needs memory, take pages of `map` that were touched before those that were only read.
pub(crate) fn forget_touched(map: &MmapRaw) {
    // Without that, what was read ahead may go first.
    let _ = map.advise(Advice::Sequential);
}

/// Reads all of `map` into the page cache by touching it.
pub(crate) fn populate(map: &MmapRaw) -> io::Result<()> {
    map.advise(Advice::Sequential)?; // else each page would count as used when this is unmapped
    map.advise(Advice::PopulateRead)
}

/// Lets no child process share the pages.
pub(crate) fn keep_from_children(map: &MmapMut) {
    // Advice: a kernel that refuses it copies pinned pages for the child.
    let _ = map.advise(Advice::DontFork);
}

/// Lets children that are forked from now on have the pages.
pub(crate) fn share_with_children(map: &MmapMut) {
    let _ = map.advise(Advice::DoFork);
}

/// What `mincore` says of the page at `offset` of `map`: never that one is missing which the page cache holds.
pub(crate) fn may_be_cached(map: &MmapRaw, offset: u64) -> bool {
    let Ok(offset) = usize::try_from(offset) else {
        return true;
    };
    let mut state = 1;
    let page = map.as_mut_ptr().wrapping_add(offset - offset % page_bytes());
    // SAFETY: looks at one page and writes one byte about it; a page that is not mapped is an error, and changes nothing.
    let failed = unsafe { libc::mincore(page.cast(), 1, &raw mut state) };
    failed != 0 || state & 1 == 1
}

/// Which pages of its memory the process has touched.
pub(crate) struct PageMap(File);

impl PageMap {
    /// None where the kernel does not tell.
    pub(crate) fn open() -> Option<Self> {
        File::open("/proc/self/pagemap").map(Self).ok()
    }

    /// Whether the page of the byte at `address` was touched.
    pub(crate) fn is_touched(&self, address: u64) -> bool {
        let mut entry = [0; 8];
        let told = self.0.read_exact_at(&mut entry, address / page_bytes() as u64 * 8).is_ok();
        told && u64::from_ne_bytes(entry) & PRESENT != 0
    }
}
