//! Reading ahead of a mapping: page faults alone ask the disk for 128 KiB at a time and leave it idle in between.

use std::{fs, io, num::NonZeroU64, ops::Range, thread};

use memmap2::{Advice, MmapOptions};

use super::residency::Residency;
use crate::io::{FileSource, Files, Mapping, pages::fault_huge_pages};

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
    /// The page cache holds most of the file.
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
            Self::Resident => "the page cache holds most of the file",
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
    } else if files.residency().is_some_and(Residency::is_most) {
        Verdict::Resident
    } else {
        Verdict::ReadAhead
    }
}

/// Brings the sorted `ranges` of `files` into the page cache, from a thread of its own that ends with `mapping`, which
/// shows them.
///
/// Does nothing if they are there already, or are more than half of the memory that is left: reading ahead would then
/// push out what it read before. It is advice; nothing depends on it.
pub fn prefetch(files: Files, ranges: &[Range<u64>], mapping: &Mapping) {
    if judge(&files, ranges) != Verdict::ReadAhead {
        return;
    }
    let is_dense = are_dense(ranges);
    if is_dense {
        mapping.read_ahead();
    }
    let files = files.into_ranges(ranges);
    let alive = mapping.watch();
    let work = move || {
        let ranges = files.iter().flat_map(|(file, ranges)| ranges.iter().map(move |range| (file, range)));
        let windows = ranges.flat_map(|(file, range)| windows(range).map(move |window| (file, window)));
        for (file, window) in windows.take_while(|_| alive.strong_count() > 0) {
            let done = is_dense && populate(file, &window).is_ok();
            if !done && fetch(file, &window).is_err() {
                break;
            }
        }
    };
    let _ = thread::Builder::new().name("flashpack-prefetch".to_owned()).spawn(work);
}

/// The parts of `range` that lie in different windows of the file.
fn windows(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let part = move |number| start.max(number * WINDOW_BYTES)..end.min((number + 1) * WINDOW_BYTES);
    (start / WINDOW_BYTES..end.div_ceil(WINDOW_BYTES)).map(part).filter(|part| !part.is_empty())
}

/// Whether whole windows are not much more than `ranges`.
fn are_dense(ranges: &[Range<u64>]) -> bool {
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let windows: u64 = ranges.iter().map(|range| windows(range).count() as u64).sum();
    windows.saturating_mul(WINDOW_BYTES) <= bytes.saturating_mul(2)
}

/// Reads a window of `file`, and what lies around it in the huge page, into the page cache by touching it in a mapping
/// of its own: in one of the whole file the process would seem to hold it twice.
fn populate(file: &FileSource, window: &Range<u64>) -> io::Result<()> {
    let bytes = usize::try_from(window.end - window.start).map_err(io::Error::other)?;
    let map = MmapOptions::new().offset(window.start).len(bytes).map_raw_read_only(&*file.file()?)?;
    fault_huge_pages(&map)?;
    map.advise(Advice::PopulateRead)
}

/// Has the kernel read a window of `file`, and nothing else: into single pages, which takes twice as long as huge ones, and
/// to read them again three times as long.
fn fetch(file: &FileSource, window: &Range<u64>) -> io::Result<()> {
    let bytes = NonZeroU64::new(window.end - window.start);
    Ok(rustix::fs::fadvise(&*file.file()?, window.start, bytes, rustix::fs::Advice::WillNeed)?)
}

/// Bytes of memory that the system could give without swapping; 0 if it does not say.
fn available_memory() -> u64 {
    let report = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = report.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_end_where_the_range_or_a_huge_page_does() {
        let parts =
            |range: Range<u64>| windows(&range).map(|part| (part.start, part.end)).collect::<Vec<_>>();
        assert_eq!(parts(0..WINDOW_BYTES), [(0, WINDOW_BYTES)]);
        assert_eq!(parts(5..6), [(5, 6)]);
        assert_eq!(parts(5..WINDOW_BYTES + 1), [(5, WINDOW_BYTES), (WINDOW_BYTES, WINDOW_BYTES + 1)]);
        assert_eq!(parts(7..7), []);
    }

    #[test]
    fn what_lies_between_may_be_half_of_the_windows() {
        let every =
            |bytes| (0..100).map(|n| 4 * n * WINDOW_BYTES..4 * n * WINDOW_BYTES + bytes).collect::<Vec<_>>();
        assert!(are_dense(&every(WINDOW_BYTES / 2)));
        assert!(!are_dense(&every(WINDOW_BYTES / 2 - 1)));
    }
}
