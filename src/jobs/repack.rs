//! New files out of tensors of others: a selection of one model's, several models', under other names, in another dtype.

use std::{
    collections::{BTreeMap, HashMap},
    fs::Metadata,
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use crate::{
    codec::Level,
    error::{At as _, Error, IoContext as _, Result},
    format::{
        DEFAULT_ALIGN_BYTES, DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    io::{Source as _, write::refuse_changed},
    jobs::{
        convert::{Cast, Converted, cast_between},
        pieces::{Pieces, in_batches},
        shards::{self, Save},
    },
    model::Model,
    plan,
    progress::Progress,
};

/// A tensor to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// Number of the model that it is in.
    pub model: usize,
    /// What it is called there.
    pub name: String,
    /// What it is called in the new file.
    pub new_name: String,
}

/// What to write, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where from.
    pub models: Vec<Arc<Model>>,
    /// What.
    pub tensors: Vec<Take>,
    /// The file, or what shards are saved as.
    pub destination: PathBuf,
    /// Type for floating tensors; `None` keeps every tensor's own.
    pub dtype: Option<DType>,
    /// Strings for each footer.
    pub metadata: BTreeMap<String, String>,
    /// The checksum algorithm.
    pub algorithm: Algorithm,
    /// Bytes of tensors in a file, unless one alone has more; `None` makes one file.
    pub shard_bytes: Option<u64>,
    /// How hard to compress, if at all.
    pub compress: Option<Level>,
    /// Whether the first model is what the new file takes the place of.
    pub replaces: bool,
}

/// Writes the new file, holding some 32 MiB in memory whatever the size of the models; `None`, with nothing done, for a
/// cast that only torch makes. Bytes are verified on the way, if all files of their model have digests: the new file's
/// digests would vouch for damage. Tied tensors stay tied.
///
/// # Errors
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that a model lacks, or that two new tensors would
/// have, and for no tensors; those of loads and of [`Save`]; [`ErrorKind::Io`](crate::ErrorKind::Io) if what is to be
/// replaced is changed meanwhile, and stays.
pub fn repack(request: Request, progress: Progress<'_>) -> Result<Option<Converted>> {
    let Some(sources) = request.sources()? else { return Ok(None) };
    let specs = specs(&sources);
    let replaced = request.replaced()?;
    let Request { models, destination, metadata, algorithm, shard_bytes, compress, .. } = request;
    let wanted = shards::Request {
        destination: destination.clone(),
        order: Order::LargestFirst,
        align_bytes: DEFAULT_ALIGN_BYTES,
        metadata,
        algorithm,
        shard_bytes,
        compress,
    };
    let mut save = Save::begin(&specs, wanted, progress).at(&destination)?;
    let mut memory: Vec<Pieces> = models.iter().map(|_| Pieces::default()).collect();
    let mut cast_bytes = Vec::new();
    let ranges = save.order().iter().map(|&tensor| (tensor, sources[tensor].range.clone()));
    for batch in in_batches(ranges, models.iter().any(|model| model.files.is_far())) {
        for (number, (model, memory)) in models.iter().zip(&mut memory).enumerate() {
            let own = batch.iter().filter(|(tensor, _)| sources[*tensor].model == number);
            memory.read(model, own.map(|(_, range)| range.clone()), true)?;
        }
        for (tensor, range) in &batch {
            let Source { model, cast, .. } = &sources[*tensor];
            let bytes = memory[*model].of(range);
            cast_bytes.clear();
            let bytes = cast.map_or(bytes, |cast| {
                cast(bytes, &mut cast_bytes);
                &cast_bytes
            });
            save.write(bytes)?;
        }
    }
    let may = || replaced.map_or(Ok(()), |before| refuse_changed(&destination, &before));
    Ok(Some(Converted { tensors: specs.len(), bytes: save.finish_if(may)? }))
}

/// Where a new tensor comes from, and what it becomes.
struct Source {
    model: usize,
    range: Range<u64>,
    cast: Option<Cast>,
    spec: TensorSpec,
}

impl Request {
    /// What the new file takes the place of, if it does.
    fn replaced(&self) -> Result<Option<Metadata>> {
        let file = self.models.first().filter(|_| self.replaces).and_then(|model| model.files.iter().next());
        let Some(file) = file.and_then(|(input, _)| input.file()) else { return Ok(None) };
        let found = file.file().and_then(|file| file.metadata());
        found.during("cannot stat", file.path()).map(Some)
    }

    /// Where all new tensors come from; `None` for a cast that only torch makes.
    fn sources(&self) -> Result<Option<Vec<Source>>> {
        self.tensors.iter().map(|take| self.source(take)).collect()
    }

    /// That of one.
    fn source(&self, take: &Take) -> Result<Option<Source>> {
        let none = || Error::argument(format!("no model {}", take.model));
        let model = self.models.get(take.model).ok_or_else(none)?;
        let index = &model.index;
        let missing = || Error::argument(plan::unknown(index, &take.name)).at(model.files.path());
        let record = &index.records()[index.find(&take.name).ok_or_else(missing)?];
        let from = index.blocks()[record.block()].dtype();
        let to = self.dtype.filter(|&to| to != from && from.is_castable_float());
        let cast = to.map(|to| cast_between(from, to));
        if matches!(cast, Some(None)) {
            return Ok(None);
        }
        let (name, shape) = (take.new_name.clone(), record.shape().to_vec());
        let spec = TensorSpec { name, dtype: to.unwrap_or(from), shape, tied_to: None };
        Ok(Some(Source { model: take.model, range: index.file_range(record), cast: cast.flatten(), spec }))
    }
}

/// The new tensors: those of the same bytes of one model are tied.
fn specs(sources: &[Source]) -> Vec<TensorSpec> {
    let mut first: HashMap<(usize, u64), usize> = HashMap::new();
    let spec = |(number, source): (usize, &Source)| {
        let place = (source.model, source.range.start);
        let root = if source.range.is_empty() { number } else { *first.entry(place).or_insert(number) };
        TensorSpec { tied_to: (root != number).then_some(root), ..source.spec.clone() }
    };
    sources.iter().enumerate().map(spec).collect()
}
