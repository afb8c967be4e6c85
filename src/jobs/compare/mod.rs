//! Comparing two models: names, dtypes, shapes and values.

mod values;

use std::{ops::Range, path::Path};

use serde::Serialize;

pub use self::values::Values;
use crate::{
    environment::Environment,
    error::Result,
    format::{DType, Index, Record},
    io::{
        Source as _,
        read::{Work, run_threads},
    },
    jobs::pieces::Pieces,
    model::Model,
    progress::Progress,
    sync::{Mutex, Unpoisoned as _},
};

/// Elements that are compared at a time: a piece of either model is in the core's cache then.
const PIECE_ELEMS: u64 = 64 << 10;
/// Bytes of both models that a thread reads at a time. Of a store each piece is a request.
const NEAR_BATCH_BYTES: u64 = 512 << 10;
const FAR_BATCH_BYTES: u64 = 32 << 20;

/// What differs.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Names of tensors that only the first model has, in its order.
    pub only_first: Vec<String>,
    /// Names of tensors that only the second model has, in its order.
    pub only_second: Vec<String>,
    /// Tensors of both that differ, in the first model's order.
    pub different: Vec<Difference>,
    /// How many tensors are the same in both, bit by bit.
    pub equal: usize,
    /// Strings of the user's that are not the same in both, by their keys, sorted.
    pub metadata: Vec<String>,
}

/// A tensor of both models that is not the same in both.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Its dtype in each.
    pub dtypes: [&'static str; 2],
    /// Its shape in each.
    pub shapes: [Vec<u64>; 2],
    /// How its values differ; none if the shapes do, or the dtypes in such a way that values cannot be compared.
    pub values: Option<Values>,
}

/// Compares the models at two paths, as [`Model::open`] takes them. Values are read as they are, and not verified.
///
/// # Errors
/// As [`Model::open`], and [`ErrorKind::Io`](crate::ErrorKind::Io).
pub fn compare(first: &Path, second: &Path, progress: Progress<'_>) -> Result<Comparison> {
    compare_models([&Model::open(first)?, &Model::open(second)?], progress)
}

/// A tensor of both models.
struct Pair<'a> {
    records: [&'a Record; 2],
    dtypes: [DType; 2],
}

impl<'a> Pair<'a> {
    fn new(indices: [&'a Index; 2], first: &'a Record, second: &'a Record) -> Self {
        let dtype = |index: &Index, record: &Record| index.blocks()[record.block()].dtype();
        Self { records: [first, second], dtypes: [dtype(indices[0], first), dtype(indices[1], second)] }
    }

    /// Whether values can be compared, one by one.
    fn is_comparable(&self) -> bool {
        self.records[0].shape() == self.records[1].shape() && values::are_comparable(self.dtypes)
    }

    /// The difference that `values` make, if there is any.
    fn difference(&self, values: Values) -> Option<Difference> {
        let comparable = self.is_comparable();
        if comparable && self.dtypes[0] == self.dtypes[1] && values.different == 0 {
            return None;
        }
        Some(Difference {
            name: self.records[0].name().to_owned(),
            dtypes: self.dtypes.map(DType::name),
            shapes: self.records.map(|record| record.shape().to_vec()),
            values: comparable.then_some(values),
        })
    }
}

fn compare_models(models: [&Model; 2], progress: Progress<'_>) -> Result<Comparison> {
    let indices = models.map(|model| &*model.index);
    let [first, second] = indices;
    let alone = |index: &Index, other: &Index| {
        let names = index.records().iter().map(Record::name);
        names.filter(|name| other.find(name).is_none()).map(str::to_owned).collect::<Vec<_>>()
    };
    let partner = |record| Some((record, &second.records()[second.find(Record::name(record))?]));
    let pairs: Vec<Pair<'_>> = first
        .records()
        .iter()
        .filter_map(partner)
        .map(|(record, other)| Pair::new(indices, record, other))
        .collect();
    let values = compare_values(models, &pairs, progress)?;
    let different: Vec<_> =
        pairs.iter().zip(values).filter_map(|(pair, values)| pair.difference(values)).collect();
    let keys = first.metadata().keys().chain(second.metadata().keys());
    let mut metadata: Vec<String> =
        keys.filter(|key| first.metadata().get(*key) != second.metadata().get(*key)).cloned().collect();
    metadata.sort_unstable();
    metadata.dedup();
    Ok(Comparison {
        only_first: alone(first, second),
        only_second: alone(second, first),
        equal: pairs.len() - different.len(),
        different,
        metadata,
    })
}

/// Elements of a pair: its number, and their bytes in each model.
type Piece = (usize, [Range<u64>; 2]);

/// How the values of each pair differ; nothing of those that cannot be compared.
fn compare_values(models: [&Model; 2], pairs: &[Pair<'_>], progress: Progress<'_>) -> Result<Vec<Values>> {
    let far = models.iter().any(|model| model.files.is_far());
    let environment = Environment::read()?;
    let threads = if far { environment.remote_threads } else { environment.read_threads }.get();
    let pieces = pieces_of(models, pairs);
    let bytes = |(_, ranges): &Piece| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    progress.start(pieces.iter().map(bytes).sum());
    let batches = in_batches(pieces, bytes, if far { FAR_BATCH_BYTES } else { NEAR_BATCH_BYTES });
    let found = Mutex::new(vec![Values::default(); pairs.len()]);
    let threads = threads.min(batches.len()).max(1);
    let work = Work::new(batches.iter());
    run_threads(threads, || {
        let mut memory = [Pieces::default(), Pieces::default()];
        while let Some(batch) = work.next() {
            let read = |side: usize, memory: &mut Pieces| {
                memory.read(models[side], batch.iter().map(|(_, ranges)| ranges[side].clone()), false)
            };
            let mut sides = memory.iter_mut().enumerate();
            work.stop_on_error(sides.try_for_each(|(side, memory)| read(side, memory)))?;
            for (number, ranges) in batch {
                let bytes = [0, 1].map(|side| memory[side].of(&ranges[side]));
                let values = values::compare(pairs[*number].dtypes, bytes);
                found.lock().unpoisoned()[*number].add(values);
            }
            work.stop_on_error(progress.advance(batch.iter().map(bytes).sum()))?;
        }
        Ok(())
    })?;
    Ok(found.into_inner().unpoisoned())
}

fn pieces_of(models: [&Model; 2], pairs: &[Pair<'_>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (number, pair) in pairs.iter().enumerate().filter(|(_, pair)| pair.is_comparable()) {
        let starts = [0, 1].map(|side| models[side].index.file_range(pair.records[side]).start);
        let elems = pair.records[0].elems();
        for from in (0..elems).step_by(usize::try_from(PIECE_ELEMS).expect("a small number")) {
            let to = elems.min(from + PIECE_ELEMS);
            let range = |side: usize| {
                let size = pair.dtypes[side].size();
                starts[side] + from * size..starts[side] + to * size
            };
            pieces.push((number, [range(0), range(1)]));
        }
    }
    pieces
}

/// As many pieces together as are about `limit` bytes.
fn in_batches(pieces: Vec<Piece>, bytes: impl Fn(&Piece) -> u64, limit: u64) -> Vec<Vec<Piece>> {
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    let mut filled = limit;
    for piece in pieces {
        if filled >= limit {
            batches.push(Vec::new());
            filled = 0;
        }
        filled += bytes(&piece);
        batches.last_mut().expect("one was just begun").push(piece);
    }
    batches
}
