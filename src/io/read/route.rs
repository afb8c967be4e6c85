//! Whether a load goes through the page cache or past it.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    time::Instant,
};

use rustix::fs::Advice;

use super::residency::Residency;
use crate::io::{FileSource, Source};

/// Bytes read, in pieces that are timed, when the page cache seems not to hold a file.
const SAMPLE_BYTES: u64 = 4 << 20;
const SAMPLE_PIECE_BYTES: usize = 512 << 10;
/// Types of file systems, as `statfs` gives them.
const OVERLAY: u64 = 0x794c_7630;
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
/// A sample this fast came from memory whatever the kernel says (a network file system's own cache): 4 GB/s is more
/// than one thread gets from any disk.
const CACHED_BYTES_PER_NANOSECOND: u128 = 4;

/// Why reads go the way they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A mapping is the page cache.
    Mapped,
    /// `FLASHPACK_DIRECT_IO` says so.
    Told,
    /// The page cache holds most of the file.
    Resident,
    /// The file system does not tell what the page cache holds.
    Unknown,
    /// A sample came at the speed of memory, although the page cache does not seem to hold most of the file.
    Fast,
    /// The page cache holds little of the file.
    Absent,
    /// An overlay, which does not tell, and a sample came at the speed of a disk.
    Slow,
    /// The file system is memory, whatever `FLASHPACK_DIRECT_IO` says.
    InMemory,
    /// Reads were to go past the page cache, and the file system refuses that.
    Refused,
}

impl Why {
    /// The reason, as a clause.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Mapped => "a mapping shows the page cache's own pages",
            Self::Told => "FLASHPACK_DIRECT_IO says so",
            Self::Resident => "it holds most of the file",
            Self::Unknown => "the file system does not tell what it holds",
            Self::Fast => "a sample of the file came at the speed of memory",
            Self::Absent => "it holds little of the file",
            Self::Slow => "a sample of the file did not come at the speed of memory",
            Self::InMemory => "the file lies in memory",
            Self::Refused => "the file system refuses direct reads",
        }
    }
}

/// The way to a file's bytes: through the page cache or past it, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Past it.
    pub direct: bool,
    /// The reason.
    pub why: Why,
    /// What was seen of the page cache, if anybody looked.
    pub residency: Option<Residency>,
}

impl Route {
    /// The way of a mapping, which needs no look.
    pub const MAPPED: Self = Self { direct: false, why: Why::Mapped, residency: None };

    /// That of a load from several files, each of which has its own: past the page cache if any goes there.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of_all(routes: &[Self]) -> Self {
        let first = routes.iter().find(|route| route.direct).unwrap_or(&routes[0]);
        Self { residency: Residency::of_all(routes.iter().map(|route| route.residency)), ..*first }
    }

    /// Decides: as `told`, or if that is open by what the page cache holds of `file`.
    #[must_use]
    pub fn choose(file: &FileSource, told: Option<bool>) -> Self {
        if told == Some(true) {
            return Self::past_the_page_cache(file);
        }
        file.advise(Advice::Normal); // an earlier load of parts may have said otherwise
        let residency = Residency::probe(file);
        let why = match (told, residency) {
            (Some(_), _) => Why::Told,
            (None, None) if !is_on(file, &[OVERLAY]) => Why::Unknown,
            (None, Some(found)) if found.is_most() => Why::Resident,
            (None, _) if sample_is_fast(file) => Why::Fast,
            (None, Some(_)) => Why::Absent,
            (None, None) => Why::Slow,
        };
        Self { direct: matches!(why, Why::Absent | Why::Slow), why, residency }
    }

    /// Decides for a load of `parts` of the file, without reading anything else of it for a sample.
    #[must_use]
    pub fn choose_for_parts(file: &FileSource, told: Option<bool>, parts: &[Range<u64>]) -> Self {
        if told == Some(true) {
            return Self::past_the_page_cache(file);
        }
        file.advise(Advice::Random);
        let residency = Residency::probe_parts(file, parts);
        let why = match (told, residency) {
            (Some(_), _) => Why::Told,
            (None, None) => Why::Unknown,
            (None, Some(found)) if found.is_most() => Why::Resident,
            (None, Some(_)) => Why::Absent,
        };
        Self { direct: why == Why::Absent, why, residency }
    }

    /// That of a load which is told to go past the page cache.
    fn past_the_page_cache(file: &FileSource) -> Self {
        let direct = !is_on(file, &[TMPFS, RAMFS]);
        Self { direct, why: if direct { Why::Told } else { Why::InMemory }, residency: None }
    }

    /// Whether a disk takes most of the time: next to memory it is so slow that a few percent of the bytes suffice.
    #[must_use]
    pub fn is_from_disk(&self) -> bool {
        let absent = self.residency.is_some_and(|residency| !residency.is_nearly_all());
        self.direct || (absent && self.why != Why::Fast)
    }
}

/// Whether the file lies on a file system of one of these types. Below an overlay, as those of container images are, is a
/// disk, which can be asked directly.
fn is_on(file: &FileSource, types: &[u64]) -> bool {
    let system = file.file().and_then(|file| Ok(rustix::fs::fstatfs(&file)?));
    system.is_ok_and(|system| u64::try_from(system.f_type).is_ok_and(|found| types.contains(&found)))
}

/// Whether most pieces of a part of the file, at a place left to chance, arrive at the speed of memory.
fn sample_is_fast(file: &FileSource) -> bool {
    let first = RandomState::new().hash_one(0) % file.len().saturating_sub(SAMPLE_BYTES).max(1);
    let mut buffer = vec![1; SAMPLE_PIECE_BYTES]; // not zeros, which would cost time at their first use
    let (mut pieces, mut fast) = (0, 0);
    for offset in (first..first + SAMPLE_BYTES).step_by(SAMPLE_PIECE_BYTES) {
        let started = Instant::now();
        let Ok(bytes @ 1..) = file.read_at(&mut buffer, offset) else {
            break;
        };
        pieces += 1;
        fast += u32::from(bytes as u128 > started.elapsed().as_nanos() * CACHED_BYTES_PER_NANOSECOND);
    }
    2 * fast > pieces
}
