//! What the page cache holds of a file, and whether a load should go through it or past it.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    ops::Range,
    time::Instant,
};

use memmap2::MmapOptions;
use rustix::{
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};

use super::{FileSource, Source, map::may_be_cached};

/// Places of a file looked at to tell whether the page cache holds it.
const PROBES: u64 = 64;
/// So many bytes of a file's parts at least for each place that is looked at: a look may leave its page behind.
const PART_PROBE_BYTES: u64 = 64 << 10;
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

/// How many of some probed pages can be read without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    resident: u32,
    probes: u32,
}

impl Residency {
    /// Looks at pages spread over `file`; `None` if the system does not tell.
    ///
    /// Of files that this process neither owns nor may write to `mincore` says that all is there, so that is believed
    /// only where a read does not have to wait. Such a read makes the kernel fetch an absent page and some neighbours:
    /// never twice at the same places, or the second would find what the first has left there.
    #[must_use]
    pub fn probe(file: &FileSource) -> Option<Self> {
        let probes = PROBES.min(file.len());
        Self::probe_at(file, probes, file.len(), |offset| offset)
    }

    /// The same for the bytes `parts` of `file`, in order: no page that is not among them is looked at.
    #[must_use]
    pub fn probe_parts(file: &FileSource, parts: &[Range<u64>]) -> Option<Self> {
        let bytes: u64 = parts.iter().map(|part| part.end - part.start).sum();
        let probes = bytes.div_ceil(PART_PROBE_BYTES).min(PROBES);
        Self::probe_at(file, probes, bytes, |mut offset| {
            for part in parts {
                let length = part.end - part.start;
                if offset < length {
                    return part.start + offset;
                }
                offset -= length;
            }
            0
        })
    }

    /// Looks at `probes` of `bytes` places, spread by chance; `place` tells where in the file each is.
    fn probe_at(file: &FileSource, probes: u64, bytes: u64, place: impl Fn(u64) -> u64) -> Option<Self> {
        let chance = RandomState::new();
        let open = file.file().ok()?;
        let map = usize::try_from(file.len())
            .ok()
            .and_then(|len| MmapOptions::new().len(len).map_raw_read_only(&*open).ok());
        let (mut resident, mut absent, mut unconfirmed) = (0, 0, 0);
        for probe in 0..probes {
            let stride = bytes / probes;
            let offset = place(stride * probe + chance.hash_one(probe) % stride);
            if map.as_ref().is_some_and(|map| !may_be_cached(map, offset)) {
                absent += 1;
                continue;
            }
            match can_be_read_at_once(&open, offset) {
                Some(true) => resident += 1,
                Some(false) => {}
                None => unconfirmed += 1,
            }
        }
        let is_known = unconfirmed == 0 || absent > 0;
        is_known.then_some(Self { resident: resident + unconfirmed, probes: u32::try_from(probes).ok()? })
    }

    /// That of several files together; `None` if one of them is unknown.
    #[must_use]
    pub fn of_all(all: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let add = |sum: Self, one: Option<Self>| {
            one.map(|one| Self { resident: sum.resident + one.resident, probes: sum.probes + one.probes })
        };
        all.into_iter().try_fold(Self { resident: 0, probes: 0 }, add)
    }

    /// The resident part, 0 to 1; that of an empty file is 1.
    #[must_use]
    pub fn part(self) -> f64 {
        if self.probes == 0 { 1.0 } else { f64::from(self.resident) / f64::from(self.probes) }
    }

    /// Whether only a few percent are not resident.
    #[must_use]
    pub const fn is_nearly_all(self) -> bool {
        self.resident * 16 >= self.probes * 15
    }

    /// Whether at least three quarters are resident. Below two thirds, what is missing takes longer through the page
    /// cache, which asks the disk for little at a time, than all of it takes past it.
    #[must_use]
    pub const fn is_most(self) -> bool {
        self.resident * 4 >= self.probes * 3
    }
}

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

/// Whether a read of the byte at `offset` does not wait; `None` if the file system cannot tell.
fn can_be_read_at_once(file: &File, offset: u64) -> Option<bool> {
    let mut byte = [0];
    let mut slices = [io::IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(_) => Some(true),
        Err(Errno::AGAIN | Errno::INTR) => Some(false),
        Err(_) => None,
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
