//! safetensors to FlashPack.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    path::{Path, PathBuf},
};

use super::{Converted, cast};
use crate::{
    error::{At, Error, ErrorKind, IoContext, Result},
    format::{
        DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
        safetensors::HeaderTensor,
    },
    io::{FileSource, Source, file::Shelf, write::NewFile},
    jobs::pack::Packer,
    model::{read_header, screen},
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
    /// The file to write.
    pub destination: &'a Path,
    /// That file, if the caller has begun it and will put it in place.
    pub begun: Option<&'a File>,
    /// Type for floating tensors; `None` keeps every tensor's own.
    pub dtype: Option<DType>,
    /// Alignment of records.
    pub align_bytes: u64,
    /// Tensors to take; `None` takes all.
    pub names: Option<&'a HashSet<String>>,
    /// Tensors to leave out.
    pub ignore: Ignore<'a>,
    /// Strings for the new footer, over those of the sources.
    pub metadata: BTreeMap<String, String>,
    /// The checksum algorithm.
    pub algorithm: Algorithm,
}

/// Converts, holding a few megabytes in memory whatever the size of the model.
///
/// # Errors
/// [`ErrorKind::Io`]; [`ErrorKind::Format`] for a damaged source; [`ErrorKind::Argument`] for a tensor name in two
/// sources; [`ErrorKind::Unsupported`] for a type that has no counterpart or a cast that only torch makes.
pub fn from_safetensors(request: &Request<'_>, progress: Progress<'_>) -> Result<Converted> {
    refuse_own_source(request)?;
    let mut metadata = BTreeMap::new();
    let mut pieces = Vec::new();
    let mut sources = Vec::with_capacity(request.sources.len());
    let shelf = Shelf::for_files(request.sources.len());
    for (number, path) in request.sources.iter().enumerate() {
        let source = FileSource::open(path)?;
        screen(&source, false)?;
        let header = read_header(&source)?;
        sources.push(source.on_shelf(shelf.as_ref()));
        metadata.extend(header.metadata);
        let wanted = |name: &String| request.names.is_none_or(|names| names.contains(name));
        let kept = header
            .tensors
            .into_iter()
            .filter(|tensor| wanted(&tensor.name) && !request.ignore.matches(&tensor.name));
        for tensor in kept {
            pieces.push(Piece::new(number, tensor, request.dtype).at(path)?);
        }
    }
    metadata.extend(request.metadata.clone());
    let specs: Vec<TensorSpec> = pieces.iter().map(|piece| piece.spec.clone()).collect();
    let mut packer = begin(request, &specs, metadata, progress)?;
    let order: Vec<usize> = packer.writes().iter().map(|write| write.tensor).collect();
    let mut streamer = Streamer { sources, buffer: Vec::new(), cast: Vec::new() };
    for tensor in order {
        streamer.copy(&pieces[tensor], &mut packer)?;
    }
    Ok(Converted { tensors: specs.len(), bytes: packer.finish()? })
}

/// The file that the tensors go to.
fn begin<'a>(
    request: &Request<'_>,
    specs: &[TensorSpec],
    metadata: BTreeMap<String, String>,
    progress: Progress<'a>,
) -> Result<Packer<'a>> {
    let Request { destination, begun, align_bytes, algorithm, .. } = *request;
    let packer = match begun {
        Some(file) => {
            let file = file.try_clone().during("cannot open", destination)?;
            let new = NewFile::lend(file, destination.to_owned());
            Packer::fill(new, specs, Order::LargestFirst, align_bytes, metadata, progress)
        }
        None => Packer::create(destination, specs, Order::LargestFirst, align_bytes, metadata, progress),
    };
    Ok(packer.at(destination)?.digested_by(algorithm))
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
    fn new(source: usize, tensor: HeaderTensor, wanted: Option<DType>) -> Result<Self> {
        let (from, shape) = tensor.in_torch()?;
        let HeaderTensor { name, offset, bytes, .. } = tensor;
        let unsupported =
            |what: String| Error::new(ErrorKind::Unsupported, format!("Unsupported dtype: {what}"));
        let to = wanted.filter(|&to| to != from && from.is_castable_float());
        let cast = match to {
            Some(to) => Some(
                cast::between(from, to)
                    .ok_or_else(|| unsupported(format!("cast of {name:?} from {from} to {to}")))?,
            ),
            None => None,
        };
        let spec = TensorSpec { name, dtype: to.unwrap_or(from), shape: shape.to_vec(), tied_to: None };
        Ok(Self { source, offset, bytes, element_bytes: from.size(), cast, spec })
    }
}

/// Copies pieces.
struct Streamer {
    sources: Vec<FileSource>,
    buffer: Vec<u8>,
    cast: Vec<u8>,
}

impl Streamer {
    fn copy(&mut self, piece: &Piece, packer: &mut Packer<'_>) -> Result<()> {
        let source = &self.sources[piece.source];
        let step = BUFFER_BYTES - BUFFER_BYTES % piece.element_bytes;
        let mut done = 0;
        while done < piece.bytes {
            let take = step.min(piece.bytes - done);
            self.buffer.resize(usize::try_from(take).expect("at most BUFFER_BYTES"), 0);
            source.read_exact_at(&mut self.buffer, piece.offset + done)?;
            match piece.cast {
                Some(cast) => {
                    self.cast.clear();
                    cast(&self.buffer, &mut self.cast);
                    packer.write(&self.cast)?;
                }
                None => packer.write(&self.buffer)?,
            }
            done += take;
        }
        Ok(())
    }
}
