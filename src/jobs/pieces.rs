//! Pieces of a payload in memory that is filled again and again, for jobs that go through models of any size.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    error::{At as _, Result, zeroed},
    format::Part,
    io::Source as _,
    jobs::load::{Options, Place, prepare},
    model::Model,
    plan::Selection,
    progress::Progress,
};

/// Pieces this close are read as one.
const GAP_BYTES: u64 = 4096;
/// Bytes that are read at a time, multiples of all elements' sizes: several readers' work, and of a store many's.
const NEAR_BATCH_BYTES: u64 = 8 << 20;
const FAR_BATCH_BYTES: u64 = 32 << 20;

/// Pieces of one model at a time.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    memory: Vec<u8>,
    /// Where each lies in memory, by its first byte in the payload.
    places: BTreeMap<u64, usize>,
}

impl Pieces {
    /// Reads `ranges` of the payload, in any order; two of them are equal or have no byte in common. With `verify`, every
    /// byte is compared with its digest, if all files of the model have digests.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Checksum`](crate::ErrorKind::Checksum),
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(super) fn read(
        &mut self,
        model: &Model,
        ranges: impl IntoIterator<Item = Range<u64>>,
        verify: bool,
    ) -> Result<()> {
        let wanted = ranges.into_iter().filter(|range| !range.is_empty());
        let ends: BTreeMap<u64, u64> = wanted.map(|range| (range.start, range.end)).collect();
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut bytes = 0;
        self.places.clear();
        for (start, end) in ends {
            match runs.last_mut() {
                Some(run) if start - run.end <= GAP_BYTES => {
                    bytes += length(&(run.end..end));
                    run.end = end;
                }
                _ => {
                    bytes += length(&(start..end));
                    runs.push(start..end);
                }
            }
            self.places.insert(start, bytes - length(&(start..end)));
        }
        if self.memory.len() < bytes {
            self.memory = zeroed(bytes as u64).at(model.files.path())?;
        }
        let digested = model.index.parts().iter().all(|part| Part::checksums(part).is_some());
        let verify = if verify { digested.then_some(true) } else { Some(false) };
        let options = Options { eager: Some(true), verify, place: Place::GivenHost };
        let prepared = prepare(model, Selection::Payload(&runs), options)?;
        let mut rest = &mut self.memory[..bytes];
        let take = |range: &Range<u64>| rest.split_off_mut(..length(range)).expect("all ranges fit");
        prepared.fill(runs.iter().map(take).collect(), Progress::SILENT)
    }

    /// The bytes of a range that was read.
    pub(super) fn of(&self, range: &Range<u64>) -> &[u8] {
        if range.is_empty() {
            return &[];
        }
        let place = self.places[&range.start];
        &self.memory[place..place + length(range)]
    }
}

/// The bytes of numbered `ranges`, in their order, as many together as are to be read at a time, of stores if `far`.
pub(super) fn in_batches(
    ranges: impl Iterator<Item = (usize, Range<u64>)>,
    far: bool,
) -> Vec<Vec<(usize, Range<u64>)>> {
    let most = if far { FAR_BATCH_BYTES } else { NEAR_BATCH_BYTES };
    let mut batches = vec![Vec::new()];
    let mut room = most;
    for (number, Range { mut start, end }) in ranges {
        while start < end {
            // What is left of a batch may be no multiple of the element.
            let step = if end - start <= room { end - start } else { most.min(end - start) };
            if step > room {
                batches.push(Vec::new());
                room = most;
            }
            batches.last_mut().expect("there is one").push((number, start..start + step));
            start += step;
            room -= step;
        }
    }
    batches
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("pieces are small")
}
