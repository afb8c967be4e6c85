//! safetensors to FlashPack.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use super::{Converted, cast};
use crate::{
    codec::Level,
    error::{At, Error, Result},
    format::{
        DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
        safetensors::HeaderTensor,
        shards::Shards,
    },
    io::{Input, file::Shelf, read::InOrder},
    jobs::shards::{self, Save},
    model::{read_header, screen, weight_files},
    plan::Ignore,
    progress::Progress,
};

/// Bytes of a source held in memory at a time: they are still in the cache when they are digested and written.
const BUFFER_BYTES: u64 = 256 << 10;

/// A conversion to make.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// safetensors files whose tensors go into one file: a model, or its shards.
    pub sources: &'a [PathBuf],
    /// What their index promises of them, if they have one.
    pub promised: Option<&'a Shards>,
    /// The file to write.
    pub destination: &'a Path,
    /// Type for floating tensors; `None` keeps every tensor's own.
    pub dtype: Option<DType>,
    /// Alignment of records.
    pub align_bytes: u64,
    /// Tensors to leave out.
    pub ignore: Ignore<'a>,
    /// The checksum algorithm.
    pub algorithm: Algorithm,
    /// Bytes of tensors in a file, unless one alone has more; `None` makes one file.
    pub shard_bytes: Option<u64>,
    /// How hard to compress, if at all.
    pub compress: Option<Level>,
}

/// Converts, holding a few megabytes in memory whatever the size of the model; `None`, with nothing done, for a cast that
/// only torch makes.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io); [`ErrorKind::Format`](crate::ErrorKind::Format) for a damaged source, and one
/// that lacks what the index promises; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a tensor name in two
/// sources; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a type that has no counterpart.
pub fn from_safetensors(request: &Request<'_>, progress: Progress<'_>) -> Result<Option<Converted>> {
    refuse_own_source(request)?;
    let (sources, metadata, pieces) = read_headers(request)?;
    let Some(pieces) = pieces.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let Request { align_bytes, algorithm, shard_bytes, compress, .. } = *request;
    let (destination, order) = (request.destination.to_owned(), Order::LargestFirst);
    let wanted =
        shards::Request { destination, order, align_bytes, metadata, algorithm, shard_bytes, compress };
    let specs: Vec<TensorSpec> = pieces.iter().map(|piece| piece.spec.clone()).collect();
    let mut save = Save::begin(&specs, wanted, progress).at(request.destination)?;
    let sources = sources.iter().map(InOrder::new).collect();
    let mut streamer = Streamer { sources, buffer: Vec::new(), cast: Vec::new() };
    for tensor in save.order().clone() {
        streamer.copy(&pieces[tensor], &mut save)?;
    }
    Ok(Some(Converted { tensors: specs.len(), bytes: save.finish()? }))
}

type Headers = (Vec<Input>, BTreeMap<String, String>, Vec<Option<Piece>>);

/// The sources, their strings, and what is to be copied of them: `None` for what only torch casts.
fn read_headers(request: &Request<'_>) -> Result<Headers> {
    let (mut sources, mut metadata, mut pieces) = (vec![], BTreeMap::new(), vec![]);
    let mut held = HashSet::new();
    let shelf = Shelf::for_files(request.sources.len());
    for (number, path) in request.sources.iter().enumerate() {
        let source = Input::open(path, None)?;
        screen(&source, false)?;
        let header = read_header(&source)?;
        sources.push(source.on_shelf(shelf.as_ref()));
        metadata.extend(header.metadata);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        for tensor in header.tensors {
            if request.promised.is_some() {
                held.insert((file.to_string(), tensor.name.clone()));
            }
            if !request.ignore.matches(&tensor.name) {
                pieces.push(Piece::new(number, tensor, request.dtype).at(path)?);
            }
        }
    }
    if let Some(promised) = request.promised {
        let folder = request.sources[0].parent().unwrap_or(Path::new("."));
        promised.check_names(|file, name| held.contains(&(file.to_owned(), name.to_owned()))).at(folder)?;
    }
    Ok((sources, metadata, pieces))
}

/// The names of all tensors in the safetensors files that `weights` is or lists.
///
/// # Errors
/// Those of [`weight_files`] and [`read_header`].
pub fn tensor_names(weights: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in weight_files(weights)?.0 {
        let header = read_header(&Input::open(&file, None)?)?;
        names.extend(header.tensors.into_iter().map(|tensor| tensor.name));
    }
    Ok(names)
}

fn refuse_own_source(request: &Request<'_>) -> Result<()> {
    let Ok(destination) = request.destination.canonicalize() else {
        return Ok(());
    };
    let same = |source: &&PathBuf| source.canonicalize().is_ok_and(|source| source == destination);
    match request.sources.iter().find(same) {
        Some(_) => Err(Error::argument("is both source and destination").at(request.destination)),
        None => Ok(()),
    }
}

/// A tensor to copy: where it is, what it becomes.
struct Piece {
    source: usize,
    offset: u64,
    bytes: u64,
    element_bytes: u64,
    cast: Option<cast::Cast>,
    spec: TensorSpec,
}

impl Piece {
    /// `None` for a cast that only torch makes.
    fn new(source: usize, tensor: HeaderTensor, wanted: Option<DType>) -> Result<Option<Self>> {
        let (from, shape) = tensor.in_torch()?;
        let HeaderTensor { name, offset, bytes, .. } = tensor;
        let to = wanted.filter(|&to| to != from && from.is_castable_float());
        let cast = to.map(|to| cast::between(from, to));
        if matches!(cast, Some(None)) {
            return Ok(None);
        }
        let spec = TensorSpec { name, dtype: to.unwrap_or(from), shape: shape.to_vec(), tied_to: None };
        Ok(Some(Self { source, offset, bytes, element_bytes: from.size(), cast: cast.flatten(), spec }))
    }
}

/// Copies pieces.
struct Streamer<'a> {
    sources: Vec<InOrder<'a, Input>>,
    buffer: Vec<u8>,
    cast: Vec<u8>,
}

impl Streamer<'_> {
    fn copy(&mut self, piece: &Piece, save: &mut Save<'_>) -> Result<()> {
        let source = &mut self.sources[piece.source];
        let end = piece.offset + piece.bytes;
        let step = BUFFER_BYTES - BUFFER_BYTES % piece.element_bytes;
        let mut done = 0;
        while done < piece.bytes {
            let take = step.min(piece.bytes - done);
            self.buffer.resize(usize::try_from(take).expect("at most BUFFER_BYTES"), 0);
            source.read_exact_at(&mut self.buffer, piece.offset + done, end)?;
            match piece.cast {
                Some(cast) => {
                    self.cast.clear();
                    cast(&self.buffer, &mut self.cast);
                    save.write(&self.cast)?;
                }
                None => save.write(&self.buffer)?,
            }
            done += take;
        }
        Ok(())
    }
}
