//! Reading ahead of a mapping: page faults alone ask the disk for 128 KiB at a time and leave it idle in between.

use std::{io, ops::Range, thread};

use memmap2::MmapOptions;

use super::{
    pace::{Ahead, Paced, Touched, Window},
    threads::{Work, run_readers},
};
use crate::{
    io::{
        FileSource, Files, Mapping,
        map::fault_huge_pages,
        route::{FileSystem, residency::Residency},
    },
    os,
    plan::Readers,
    ram::Ram,
};

/// Bytes asked for at a time by one reader, a huge page: of 2, 8 and 32 MiB, the smallest was as fast as any.
const WINDOW_BYTES: u64 = 2 << 20;
/// Less than this of a disk is not worth a thread.
const MIN_BYTES: u64 = 8 << 20;
/// Readers that begin on a disk: one asks for the next huge page while it waits for this one.
const DISK_READERS: usize = 1;
/// The kernel takes advice of no more bytes at once, whatever it is asked.
const ADVICE_BYTES: usize = 128 << 10;

/// What [`prefetch`] makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reads ahead.
    ReadAhead,
    /// It reads ahead of what is touched, as far as there is memory.
    FollowTouches,
    /// There are too few bytes.
    TooSmall,
    /// There is no memory for it, or nobody tells how much there is.
    NoMemory,
    /// The page cache holds most of the file.
    Resident,
}

impl Verdict {
    /// Whether anything is read.
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::ReadAhead | Self::FollowTouches)
    }

    /// The verdict, as a clause.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::ReadAhead => "in the background, after the load has returned",
            Self::FollowTouches => "in the background, as far ahead of what is touched as memory allows",
            Self::TooSmall => "there is too little to read",
            Self::NoMemory => "no memory is left for it",
            Self::Resident => "the page cache holds most of the file",
        }
    }
}

/// Whether to read `ranges` of `files` ahead.
#[must_use]
pub fn judge(files: &Files, ranges: &[Range<u64>]) -> Verdict {
    let bytes = bytes_of(ranges);
    unneeded(files, ranges).unwrap_or_else(|| match budget(bytes, Ram::now().available) {
        0 => Verdict::NoMemory,
        budget if budget < bytes => Verdict::FollowTouches,
        _ => Verdict::ReadAhead,
    })
}

/// Why there is no need to, whatever memory is left.
fn unneeded(files: &Files, ranges: &[Range<u64>]) -> Option<Verdict> {
    // Each page that is missing costs a latency.
    let is_remote = is_remote(files);
    let suffices = if is_remote { Residency::is_all } else { Residency::is_most };
    if bytes_of(ranges) < MIN_BYTES && !is_remote {
        Some(Verdict::TooSmall)
    } else {
        files.residency().is_some_and(suffices).then_some(Verdict::Resident)
    }
}

/// So many of the `bytes` may be read ahead and not touched yet that reading does not push out what it read before: all, if
/// that is no more than half of the memory that is left; else a quarter of that, as what was touched already stays for a
/// while, too.
fn budget(bytes: u64, available: u64) -> u64 {
    if bytes <= available / 2 { bytes } else { available / 4 }
}

/// Brings the sorted `ranges` of `files` into the page cache, in the background until `mapping`, which shows them, is gone;
/// the threads are `readers` where files are remote.
///
/// Of more bytes than there is memory for, it reads those that are next to be touched. It is advice; nothing depends on it.
pub fn prefetch(files: Files, ranges: &[Range<u64>], mapping: &Mapping, readers: Readers) {
    if unneeded(&files, ranges).is_some() {
        return;
    }
    let (bytes, available) = (bytes_of(ranges), Ram::now().available);
    let budget = budget(bytes, available);
    if budget == 0 {
        return;
    }
    if bytes > available {
        mapping.forget_touched();
    }
    let is_dense = are_dense(ranges);
    if is_dense {
        mapping.read_ahead();
    }
    let readers = if is_remote(&files) { readers } else { Readers { first: DISK_READERS, ..readers } };
    let (alive, touched) = (mapping.watch(), Touched::of(mapping.data().addr()));
    let parts = files.into_ranges(ranges);
    let work = move || {
        let each = parts.iter().flat_map(|(file, base, ranges)| {
            ranges.iter().flat_map(windows).map(move |range| FileWindow { file, base: *base, range })
        });
        let windows = Work::new(Paced::new(each, Ahead::new(budget, touched), alive));
        run_readers(readers, |completed| {
            while let Some(window) = windows.next() {
                if window.populate(is_dense).is_err() && window.advise().is_err() {
                    windows.stop();
                }
                completed(window.range.end - window.range.start);
            }
            Ok(())
        })
    };
    let _ = thread::Builder::new().name("flashpack-prefetch".to_owned()).spawn(work);
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn is_remote(files: &Files) -> bool {
    files.iter().any(|(input, _)| input.file().is_some_and(|file| FileSystem::of(file) == FileSystem::Remote))
}

/// Part of a file that is mapped.
struct FileWindow<'a> {
    file: &'a FileSource,
    /// Where the file begins in the mapping.
    base: u64,
    range: Range<u64>,
}

impl Window for FileWindow<'_> {
    fn place(&self) -> Range<u64> {
        self.base + self.range.start..self.base + self.range.end
    }
}

impl FileWindow<'_> {
    /// Reads it into the page cache by touching it in a mapping of its own: in one of the whole file the process would seem
    /// to hold it twice. What lies around it in the huge page comes too, if much of that is wanted (`is_dense`); reading
    /// single pages takes twice as long, and reading them again three times as long.
    fn populate(&self, is_dense: bool) -> io::Result<()> {
        let Range { start, end } = self.range;
        let bytes = usize::try_from(end - start).map_err(io::Error::other)?;
        let map = MmapOptions::new().offset(start).len(bytes).map_raw_read_only(&*self.file.file()?)?;
        if is_dense {
            fault_huge_pages(&map)?;
        } else {
            self.advise()?;
        }
        os::populate(&map)
    }

    /// Has the kernel read it, and nothing else, into single pages; it does not wait for them.
    fn advise(&self) -> io::Result<()> {
        let file = self.file.file()?;
        for start in self.range.clone().step_by(ADVICE_BYTES) {
            os::will_need(&file, &(start..self.range.end.min(start + ADVICE_BYTES as u64)))?;
        }
        Ok(())
    }
}

/// The parts of `range` that lie in different windows of the file.
fn windows(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let part = move |number| start.max(number * WINDOW_BYTES)..end.min((number + 1) * WINDOW_BYTES);
    (start / WINDOW_BYTES..end.div_ceil(WINDOW_BYTES)).map(part).filter(|part| !part.is_empty())
}

/// Whether whole windows are not much more than `ranges`.
fn are_dense(ranges: &[Range<u64>]) -> bool {
    let bytes = bytes_of(ranges);
    let windows: u64 = ranges.iter().map(|range| windows(range).count() as u64).sum();
    windows.saturating_mul(WINDOW_BYTES) <= bytes.saturating_mul(2)
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
