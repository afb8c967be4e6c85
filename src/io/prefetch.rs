//! Reading ahead of a mapping: page faults alone ask the disk for 128 KiB at a time and leave it idle in between.

use std::{fs, io, ops::Range, sync::Weak, thread};

use memmap2::{Advice, MmapOptions};

use super::{FileSource, Files, map::fault_huge_pages, residency::Residency};

/// Bytes asked for at a time, a huge page: of 2, 8 and 32 MiB, the smallest was as fast as any.
const WINDOW_BYTES: u64 = 2 << 20;
/// Less than this is not worth a thread.
const MIN_BYTES: u64 = 8 << 20;

/// What [`prefetch`] makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reads ahead.
    ReadAhead,
    /// There are too few bytes.
    TooSmall,
    /// Reading ahead would push out what it read before.
    TooLarge,
    /// The page cache holds most of the file, or nobody can tell.
    Resident,
}

impl Verdict {
    /// The verdict, as a clause.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::ReadAhead => "in the background, after the load has returned",
            Self::TooSmall => "there is too little to read",
            Self::TooLarge => "it would take more than half of the memory that is left",
            Self::Resident => "the page cache holds most of the file, or cannot tell",
        }
    }
}

/// Whether to read `ranges` of `files` ahead.
#[must_use]
pub fn judge(files: &Files, ranges: &[Range<u64>]) -> Verdict {
    let bytes = ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    if bytes < MIN_BYTES {
        Verdict::TooSmall
    } else if bytes > available_memory() / 2 {
        Verdict::TooLarge
    } else if files.residency().is_none_or(Residency::is_most) {
        Verdict::Resident
    } else {
        Verdict::ReadAhead
    }
}

/// Brings the sorted `ranges` of `files` into the page cache, from a thread of its own that ends with `mapping`.
///
/// Does nothing if they are there already, or are more than half of the memory that is left: reading ahead would then
/// push out what it read before. It is advice; nothing depends on it.
pub fn prefetch(files: Files, ranges: &[Range<u64>], mapping: Weak<()>) {
    if judge(&files, ranges) != Verdict::ReadAhead {
        return;
    }
    let files = files.into_ranges(ranges);
    let work = move || {
        let ranges = files.iter().flat_map(|(file, ranges)| ranges.iter().map(move |range| (file, range)));
        let windows = ranges.flat_map(|(file, range)| {
            let numbers = range.start / WINDOW_BYTES..range.end.div_ceil(WINDOW_BYTES);
            numbers.map(move |number| (file, number * WINDOW_BYTES, range.end))
        });
        for (file, start, end) in windows.take_while(|_| mapping.strong_count() > 0) {
            if populate(file, start, (end - start).min(WINDOW_BYTES)).is_err() {
                break;
            }
        }
    };
    let _ = thread::Builder::new().name("flashpack-prefetch".to_owned()).spawn(work);
}

/// Reads some bytes of `file` into the page cache by touching them in a mapping.
///
/// Asked with `posix_fadvise`, the kernel caches single pages, which took twice as long to read and, once cached, three
/// times as long to read again as the huge pages that this makes. Each window has a mapping of its own, or the process
/// would seem to hold the file twice.
fn populate(file: &FileSource, start: u64, bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    let map = MmapOptions::new().offset(start).len(bytes).map_raw_read_only(file.file())?;
    fault_huge_pages(&map);
    map.advise(Advice::PopulateRead)
}

/// Bytes of memory that the system could give without swapping; 0 if it does not say.
fn available_memory() -> u64 {
    let report = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = report.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
