//! What the page cache holds of a file.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
};

use memmap2::MmapOptions;

use crate::{
    io::{FileSource, Source},
    os::{can_be_read_at_once, may_be_cached},
};

/// Places of a file looked at to tell whether the page cache holds it.
const PROBES: u64 = 64;
/// They are looked at in so many passes over the file. If the first one finds nothing, there is no other: of 200 files that
/// 64 threads look at, all places would take 0.08 s on two processors.
const PASSES: usize = 4;
/// So many bytes of a file's parts at least for each place that is looked at: a look may leave its page behind.
const PART_PROBE_BYTES: u64 = 64 << 10;

/// How many of some probed pages can be read without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    resident: u32,
    probes: u32,
}

impl Residency {
    #[cfg(test)]
    pub(super) const fn new(resident: u32, probes: u32) -> Self {
        Self { resident, probes }
    }

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
        let (mut looked, mut resident, mut absent, mut unconfirmed) = (0, 0, 0, 0);
        for probe in (0..PASSES as u64).flat_map(|first| (first..probes).step_by(PASSES)) {
            if absent == looked && looked == probes.div_ceil(PASSES as u64) {
                break;
            }
            looked += 1;
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
        is_known.then_some(Self { resident: resident + unconfirmed, probes: u32::try_from(looked).ok()? })
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

    /// Whether all that was looked at is resident.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.resident == self.probes
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
