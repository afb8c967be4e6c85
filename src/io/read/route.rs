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

/// What a load wants to read of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads<'a> {
    Nothing,
    Parts(&'a [Range<u64>]),
    All,
}

/// What a load asks of the way to a file's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    reads: Reads<'a>,
    /// The file is mapped, which only shows what the page cache holds.
    maps: bool,
    /// `FLASHPACK_DIRECT_IO`: past the page cache or not; open if it does not say.
    direct: Option<bool>,
}

impl<'a> Asked<'a> {
    /// By a load that reads all of a file: past the page cache or not as `direct` says.
    #[must_use]
    pub const fn all(direct: Option<bool>) -> Self {
        Self { reads: Reads::All, maps: false, direct }
    }

    /// By a load that reads the sorted `parts` of a file, and is to read nothing else of it for a sample.
    #[must_use]
    pub const fn parts(direct: Option<bool>, parts: &'a [Range<u64>]) -> Self {
        Self { reads: Reads::Parts(parts), maps: false, direct }
    }

    /// By a load that maps a file, and reads it too if it `verifies`.
    #[must_use]
    pub const fn mapping(verifies: bool) -> Self {
        let reads = if verifies { Reads::All } else { Reads::Nothing };
        Self { reads, maps: true, direct: None }
    }

    /// The same for a file of which `parts` are read, if only parts are.
    pub(crate) const fn with_parts(self, parts: &[Range<u64>]) -> Asked<'_> {
        let reads = match self.reads {
            Reads::Nothing => Reads::Nothing,
            Reads::Parts(_) => Reads::Parts(parts),
            Reads::All => Reads::All,
        };
        Asked { reads, maps: self.maps, direct: self.direct }
    }

    /// The parts that are read, if only parts are.
    pub(crate) const fn only(&self) -> Option<&'a [Range<u64>]> {
        match self.reads {
            Reads::Parts(parts) => Some(parts),
            Reads::Nothing | Reads::All => None,
        }
    }
}

/// What lies below a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Memory,
    /// As below container images: a disk, which can be read past the page cache, but does not tell what that holds.
    Overlay,
    Other,
}

/// What can be seen of a file that a load is about to read; it looks no further than the load needs.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    below: Below,
    residency: Option<Residency>,
    /// Whether a sample came at the speed of memory, if one was taken.
    sample_is_fast: Option<bool>,
}

impl Probe {
    /// Looks at `file` for a load that asks `asked`.
    #[must_use]
    pub fn of(file: &FileSource, asked: Asked<'_>) -> Self {
        let unseen = Self { below: Below::Other, residency: None, sample_is_fast: None };
        let residency = match (asked.reads, asked.direct) {
            (Reads::Nothing, _) => return unseen,
            (_, Some(true)) => None,
            (Reads::Parts(parts), _) => {
                file.advise(Advice::Random);
                Residency::probe_parts(file, parts)
            }
            (Reads::All, _) => {
                file.advise(Advice::Normal); // an earlier load of parts may have said otherwise
                Residency::probe(file)
            }
        };
        let seen = Self { below: below(file), residency, ..unseen };
        // Reading past the page cache has to be worth it.
        let needs_sample = asked.reads == Reads::All && matches!(seen.why(asked), Why::Absent | Why::Slow);
        Self { sample_is_fast: needs_sample.then(|| sample_is_fast(file)), ..seen }
    }

    fn why(&self, asked: Asked<'_>) -> Why {
        let whole = asked.reads == Reads::All;
        match (asked.direct, self.residency) {
            _ if asked.maps => Why::Mapped,
            (Some(true), _) if self.below == Below::Memory => Why::InMemory,
            (Some(_), _) => Why::Told,
            (None, None) if !whole || self.below != Below::Overlay => Why::Unknown,
            (None, Some(found)) if found.is_most() => Why::Resident,
            (None, _) if self.sample_is_fast == Some(true) => Why::Fast,
            (None, Some(_)) => Why::Absent,
            (None, None) => Why::Slow,
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
    /// The way that `asked` takes to a file of which `probe` was seen.
    #[must_use]
    pub fn decide(probe: &Probe, asked: Asked<'_>) -> Self {
        let why = probe.why(asked);
        let direct = match why {
            Why::Absent | Why::Slow => true,
            Why::Told => asked.direct == Some(true),
            _ => false,
        };
        Self { direct, why, residency: probe.residency }
    }

    /// That of a load from several files, each of which has its own: past the page cache if any goes there.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of_all(routes: &[Self]) -> Self {
        let first = routes.iter().find(|route| route.direct).unwrap_or(&routes[0]);
        Self { residency: Residency::of_all(routes.iter().map(|route| route.residency)), ..*first }
    }

    /// Whether a disk takes most of the time: next to memory it is so slow that a few percent of the bytes suffice.
    #[must_use]
    pub fn is_from_disk(&self) -> bool {
        let absent = self.residency.is_some_and(|residency| !residency.is_nearly_all());
        self.direct || (absent && self.why != Why::Fast)
    }
}

fn below(file: &FileSource) -> Below {
    let system = file.file().and_then(|file| Ok(rustix::fs::fstatfs(&file)?));
    match system.map(|system| u64::try_from(system.f_type)) {
        Ok(Ok(TMPFS | RAMFS)) => Below::Memory,
        Ok(Ok(OVERLAY)) => Below::Overlay,
        _ => Below::Other,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(below: Below, resident: Option<u32>, sample_is_fast: Option<bool>) -> Probe {
        Probe { below, residency: resident.map(|resident| Residency::new(resident, 64)), sample_is_fast }
    }

    fn decided(probe: Probe, asked: Asked<'_>) -> (bool, Why) {
        let Route { direct, why, .. } = Route::decide(&probe, asked);
        (direct, why)
    }

    #[test]
    fn a_mapping_shows_the_page_cache_whatever_was_seen() {
        for (verifies, resident) in [(false, None), (true, Some(0))] {
            let probe = seen(Below::Other, resident, None);
            let route = Route::decide(&probe, Asked::mapping(verifies));
            assert_eq!((route.direct, route.why, route.residency), (false, Why::Mapped, probe.residency));
        }
    }

    #[test]
    fn what_the_environment_says_is_done_but_in_memory() {
        let parts = [0..5, 9..12];
        for below in [Below::Other, Below::Overlay, Below::Memory] {
            let probe = seen(below, Some(0), None);
            assert_eq!(decided(probe, Asked::all(Some(false))), (false, Why::Told));
            assert_eq!(decided(probe, Asked::parts(Some(false), &parts)), (false, Why::Told));
        }
        let (disk, memory) = (seen(Below::Other, None, None), seen(Below::Memory, None, None));
        for asked in [Asked::all(Some(true)), Asked::parts(Some(true), &parts)] {
            assert_eq!(decided(disk, asked), (true, Why::Told));
            assert_eq!(decided(memory, asked), (false, Why::InMemory));
        }
    }

    #[test]
    fn else_the_page_cache_and_a_sample_decide() {
        for (below, resident, fast, expected) in [
            (Below::Other, Some(64), None, (false, Why::Resident)),
            (Below::Other, Some(48), None, (false, Why::Resident)),
            (Below::Other, Some(47), Some(false), (true, Why::Absent)),
            (Below::Other, Some(0), Some(true), (false, Why::Fast)),
            (Below::Other, None, None, (false, Why::Unknown)),
            (Below::Memory, None, None, (false, Why::Unknown)),
            (Below::Overlay, None, Some(true), (false, Why::Fast)),
            (Below::Overlay, None, Some(false), (true, Why::Slow)),
        ] {
            let probe = seen(below, resident, fast);
            assert_eq!(decided(probe, Asked::all(None)), expected, "{probe:?}");
        }
    }

    #[test]
    fn parts_are_judged_without_a_sample() {
        let parts = [0..5, 9..12];
        for (below, resident, expected) in [
            (Below::Other, Some(48), (false, Why::Resident)),
            (Below::Other, Some(47), (true, Why::Absent)),
            (Below::Overlay, None, (false, Why::Unknown)),
        ] {
            assert_eq!(decided(seen(below, resident, None), Asked::parts(None, &parts)), expected);
        }
    }

    #[test]
    fn a_load_looks_no_further_than_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = FileSource::open(&path).unwrap();
        let parts = [0..5, 9..12];
        let looks = |asked| {
            let Probe { residency, sample_is_fast, .. } = Probe::of(&file, asked);
            (residency.is_some(), sample_is_fast.is_some())
        };
        assert_eq!(looks(Asked::mapping(false)), (false, false));
        assert_eq!(looks(Asked::all(Some(true))), (false, false));
        for asked in [Asked::mapping(true), Asked::all(Some(false)), Asked::parts(None, &parts)] {
            assert!(!looks(asked).1, "{asked:?} takes no sample");
        }
    }
}
