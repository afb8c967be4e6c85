//! Whether a load goes through the page cache or past it.

pub mod residency;
mod sample;
mod system;

use std::ops::Range;

pub use self::sample::Samples;
use self::{residency::Residency, system::takes_direct_reads};
use crate::io::FileSource;
pub use crate::os::FileSystem;

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
    /// An object of a store.
    Store,
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
            Self::Store => "it is an object of a store",
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

/// What can be seen of a file that a load is about to read; it looks no further than the load needs.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    system: FileSystem,
    residency: Option<Residency>,
    /// Whether a sample came at the speed of memory, if one was taken.
    sample_is_fast: Option<bool>,
    /// Whether the file system says that it takes direct reads, if it says anything.
    takes_direct: Option<bool>,
}

impl Probe {
    /// Looks at `file` for a load that asks `asked`; of several files on one device `samples` takes one sample.
    #[must_use]
    pub fn of(file: &FileSource, asked: Asked<'_>, samples: &Samples) -> Self {
        let unseen =
            Self { system: FileSystem::Local, residency: None, sample_is_fast: None, takes_direct: None };
        let residency = match (asked.reads, asked.direct) {
            (Reads::Nothing, _) => return unseen,
            (_, Some(true)) => None,
            (Reads::Parts(parts), _) => {
                file.set_read_ahead(false);
                Residency::probe_parts(file, parts)
            }
            (Reads::All, _) => {
                file.set_read_ahead(true); // an earlier load of parts may have said otherwise
                Residency::probe(file)
            }
        };
        let takes_direct = if asked.maps { None } else { takes_direct_reads(file) };
        let seen = Self { system: FileSystem::of(file), residency, takes_direct, ..unseen };
        let goes_past = matches!(seen.why(asked), Why::Absent | Why::Slow);
        // Reading past the page cache has to be worth it. That of a disk may have another one below it, as that of the
        // host of a virtual machine; of a remote file system direct reads find all those as well.
        let needs_sample = goes_past && asked.reads == Reads::All && !seen.is_known_to_be_remote();
        Self { sample_is_fast: needs_sample.then(|| samples.is_fast(file)), ..seen }
    }

    /// Whether it is certain that the bytes have to come from another machine.
    fn is_known_to_be_remote(&self) -> bool {
        self.system == FileSystem::Remote && self.residency.is_some()
    }

    fn why(&self, asked: Asked<'_>) -> Why {
        let whole = asked.reads == Reads::All;
        match (asked.direct, self.residency) {
            _ if asked.maps => Why::Mapped,
            (Some(true), _) if self.system == FileSystem::Memory => Why::InMemory,
            (Some(true), _) if self.takes_direct == Some(false) => Why::Refused,
            (Some(_), _) => Why::Told,
            (None, Some(found)) if found.is_most() => Why::Resident,
            (None, None) if !whole || !self.system.has_hidden_pages() => Why::Unknown,
            (None, _) if self.sample_is_fast == Some(true) => Why::Fast,
            (None, _) if self.takes_direct == Some(false) => Why::Refused,
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
    /// Whether what the page cache lacks is on another machine.
    remote: bool,
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
        let remote = probe.system == FileSystem::Remote;
        Self { direct, why, residency: probe.residency, remote }
    }

    /// That to an object of a store.
    pub(crate) const fn to_store() -> Self {
        Self { direct: false, why: Why::Store, residency: None, remote: true }
    }

    /// That of a load from several files, each of which has its own: of one that waits, if any does.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn of_all(routes: &[Self]) -> Self {
        let waiting = routes.iter().find(|route| route.waits());
        let first = routes.iter().find(|route| route.direct).or(waiting).unwrap_or(&routes[0]);
        Self { residency: Residency::of_all(routes.iter().map(|route| route.residency)), ..*first }
    }

    /// The same, when the file system refuses direct reads after all.
    pub(crate) const fn refused(self) -> Self {
        Self { direct: false, why: Why::Refused, ..self }
    }

    /// Whether a disk takes most of the time: next to memory it is so slow that a few percent of the bytes suffice.
    #[must_use]
    pub fn is_from_disk(&self) -> bool {
        let absent = self.residency.is_some_and(|residency| !residency.is_nearly_all());
        self.direct || (absent && self.why != Why::Fast)
    }

    /// Whether reads wait for a disk or a network, and keep no processor busy meanwhile.
    #[must_use]
    pub fn waits(&self) -> bool {
        let unknown = matches!(self.why, Why::Unknown | Why::Told) && self.residency.is_none() && self.remote;
        self.is_from_disk() || unknown || matches!(self.why, Why::Refused | Why::Store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(system: FileSystem, resident: Option<u32>, sample_is_fast: Option<bool>) -> Probe {
        let residency = resident.map(|resident| Residency::new(resident, 64));
        Probe { system, residency, sample_is_fast, takes_direct: None }
    }

    fn decided(probe: Probe, asked: Asked<'_>) -> (bool, Why) {
        let Route { direct, why, .. } = Route::decide(&probe, asked);
        (direct, why)
    }

    #[test]
    fn a_mapping_shows_the_page_cache_whatever_was_seen() {
        for (verifies, resident) in [(false, None), (true, Some(0))] {
            let probe = seen(FileSystem::Local, resident, None);
            let route = Route::decide(&probe, Asked::mapping(verifies));
            assert_eq!((route.direct, route.why, route.residency), (false, Why::Mapped, probe.residency));
        }
    }

    #[test]
    fn what_the_environment_says_is_done_but_in_memory() {
        let parts = [0..5, 9..12];
        for system in [FileSystem::Local, FileSystem::Overlay, FileSystem::Memory] {
            let probe = seen(system, Some(0), None);
            assert_eq!(decided(probe, Asked::all(Some(false))), (false, Why::Told));
            assert_eq!(decided(probe, Asked::parts(Some(false), &parts)), (false, Why::Told));
        }
        let (disk, memory) = (seen(FileSystem::Local, None, None), seen(FileSystem::Memory, None, None));
        for asked in [Asked::all(Some(true)), Asked::parts(Some(true), &parts)] {
            assert_eq!(decided(disk, asked), (true, Why::Told));
            assert_eq!(decided(memory, asked), (false, Why::InMemory));
        }
    }

    #[test]
    fn else_the_page_cache_and_a_sample_decide() {
        for (system, resident, fast, expected) in [
            (FileSystem::Local, Some(64), None, (false, Why::Resident)),
            (FileSystem::Local, Some(48), None, (false, Why::Resident)),
            (FileSystem::Local, Some(47), Some(false), (true, Why::Absent)),
            (FileSystem::Local, Some(0), Some(true), (false, Why::Fast)),
            (FileSystem::Local, None, None, (false, Why::Unknown)),
            (FileSystem::Memory, None, None, (false, Why::Unknown)),
            (FileSystem::Overlay, None, Some(true), (false, Why::Fast)),
            (FileSystem::Overlay, None, Some(false), (true, Why::Slow)),
            (FileSystem::Remote, Some(64), None, (false, Why::Resident)),
            (FileSystem::Remote, Some(0), None, (true, Why::Absent)),
            (FileSystem::Remote, None, Some(true), (false, Why::Fast)),
            (FileSystem::Remote, None, Some(false), (true, Why::Slow)),
        ] {
            let probe = seen(system, resident, fast);
            assert_eq!(decided(probe, Asked::all(None)), expected, "{probe:?}");
        }
    }

    #[test]
    fn parts_are_judged_without_a_sample() {
        let parts = [0..5, 9..12];
        for (system, resident, expected) in [
            (FileSystem::Local, Some(48), (false, Why::Resident)),
            (FileSystem::Local, Some(47), (true, Why::Absent)),
            (FileSystem::Overlay, None, (false, Why::Unknown)),
        ] {
            assert_eq!(decided(seen(system, resident, None), Asked::parts(None, &parts)), expected);
        }
    }

    #[test]
    fn a_file_system_that_tells_that_it_takes_no_direct_reads_is_not_tried() {
        for (resident, asked) in [(None, Asked::all(Some(true))), (Some(0), Asked::all(None))] {
            let probe = seen(FileSystem::Local, resident, None);
            for (takes_direct, expected) in [(None, true), (Some(true), true), (Some(false), false)] {
                let route = Route::decide(&Probe { takes_direct, ..probe }, asked);
                assert_eq!((route.direct, route.waits()), (expected, true), "{takes_direct:?} {route:?}");
            }
        }
    }

    #[test]
    fn reads_that_the_page_cache_does_not_answer_wait() {
        let parts = [0..5, 9..12];
        for (system, resident, asked, expected) in [
            (FileSystem::Local, Some(64), Asked::all(None), false),
            (FileSystem::Local, Some(0), Asked::all(None), true),
            (FileSystem::Local, Some(0), Asked::all(Some(false)), true),
            (FileSystem::Local, Some(0), Asked::mapping(true), true),
            (FileSystem::Local, None, Asked::parts(None, &parts), false),
            (FileSystem::Memory, None, Asked::all(Some(true)), false),
            (FileSystem::Remote, Some(64), Asked::all(None), false),
            (FileSystem::Remote, None, Asked::parts(None, &parts), true),
            (FileSystem::Remote, None, Asked::all(Some(false)), true),
        ] {
            let route = Route::decide(&seen(system, resident, None), asked);
            assert_eq!(route.waits(), expected, "{system:?} {route:?}");
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
            let Probe { residency, sample_is_fast, .. } = Probe::of(&file, asked, &Samples::default());
            (residency.is_some(), sample_is_fast.is_some())
        };
        assert_eq!(looks(Asked::mapping(false)), (false, false));
        assert_eq!(looks(Asked::all(Some(true))), (false, false));
        for asked in [Asked::mapping(true), Asked::all(Some(false)), Asked::parts(None, &parts)] {
            assert!(!looks(asked).1, "{asked:?} takes no sample");
        }
    }
}
