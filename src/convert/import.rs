//! safetensors to FlashPack.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::tensor::Metadata;

use super::{Converted, MAX_HEADER_BYTES, cast};
use crate::{
    error::{At, Error, ErrorKind, Result, zeroed},
    format::{
        DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    io::{FileSource, Source},
    pack::Packer,
    plan::Ignore,
    progress::Progress,
};

/// Bytes of a source held in memory at a time.
const BUFFER_BYTES: u64 = 8 << 20;

/// A conversion to make.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// safetensors files whose tensors go into one file: a model, or its shards.
    pub sources: &'a [PathBuf],
    /// The file to write.
    pub destination: &'a Path,
    /// Type for floating tensors; `None` keeps every tensor's own.
    pub dtype: Option<DType>,
    /// Alignment of records.
    pub align_bytes: u64,
    /// Tensors to leave out.
    pub ignore: Ignore<'a>,
    /// Strings for the new footer, over those of the sources.
    pub metadata: BTreeMap<String, String>,
    /// What makes the digests.
    pub algorithm: Algorithm,
}

/// Converts, holding a few megabytes in memory whatever the size of the model.
///
/// # Errors
/// [`ErrorKind::Io`]; [`ErrorKind::Format`] for a damaged source; [`ErrorKind::Argument`] for a tensor name in two
/// sources; [`ErrorKind::Unsupported`] for a type that has no counterpart or a cast that only torch makes.
pub fn from_safetensors(request: Request<'_>, progress: Progress<'_>) -> Result<Converted> {
    refuse_own_source(&request)?;
    let mut metadata = BTreeMap::new();
    let mut pieces = Vec::new();
    for (number, path) in request.sources.iter().enumerate() {
        let header = Header::open(path)?;
        metadata.extend(header.metadata);
        let kept = header.tensors.into_iter().filter(|tensor| !request.ignore.matches(&tensor.name));
        for tensor in kept {
            pieces.push(Piece::new(number, tensor, request.dtype).at(path)?);
        }
    }
    metadata.extend(request.metadata);
    let specs: Vec<TensorSpec> = pieces.iter().map(|piece| piece.spec.clone()).collect();
    let Request { sources, destination, align_bytes, algorithm, .. } = request;
    let mut packer =
        Packer::create(destination, &specs, Order::LargestFirst, align_bytes, metadata, progress)
            .at(destination)?
            .digested_by(algorithm);
    let order: Vec<usize> = packer.writes().iter().map(|write| write.tensor).collect();
    let mut streamer = Streamer { sources, open: None, buffer: Vec::new(), cast: Vec::new() };
    for tensor in order {
        streamer.copy(&pieces[tensor], &mut packer)?;
    }
    Ok(Converted { tensors: specs.len(), bytes: packer.finish()? })
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

/// What a safetensors file says about its tensors.
struct Header {
    tensors: Vec<SourceTensor>,
    metadata: BTreeMap<String, String>,
}

struct SourceTensor {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<u64>,
    offset: u64,
    bytes: u64,
}

impl Header {
    fn open(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        Self::read(&source).at(path)
    }

    fn read(source: &FileSource) -> Result<Self> {
        let damaged = |why: String| Error::format(format!("is not a sound safetensors file: {why}"));
        let mut length = [0; 8];
        if source.len() < length.len() as u64 {
            return Err(damaged(format!("{} bytes are too few for a header", source.len())));
        }
        source.read_exact_at(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > source.len() - 8 {
            return Err(damaged(format!("a header of {length} bytes in a file of {}", source.len())));
        }
        let payload = 8 + length;
        let mut json = zeroed(length)?;
        source.read_exact_at(&mut json, 8)?;
        let header: Metadata = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        let end = payload + header.data_len() as u64;
        if end != source.len() {
            return Err(damaged(format!("its tensors end at byte {end}, the file at {}", source.len())));
        }
        let tensor = |name: String| {
            let info = header.info(&name).expect("the name comes from the header itself");
            let (start, end) = info.data_offsets;
            SourceTensor {
                dtype: info.dtype,
                shape: info.shape.iter().map(|&size| size as u64).collect(),
                offset: payload + start as u64,
                bytes: (end - start) as u64,
                name,
            }
        };
        let tensors = header.offset_keys().into_iter().map(tensor).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata })
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
    fn new(source: usize, tensor: SourceTensor, wanted: Option<DType>) -> Result<Self> {
        let SourceTensor { name, dtype, mut shape, offset, bytes } = tensor;
        let unsupported =
            |what: String| Error::new(ErrorKind::Unsupported, format!("Unsupported dtype: {what}"));
        let from =
            DType::from_safetensors(dtype).ok_or_else(|| unsupported(format!("{dtype:?} of {name:?}")))?;
        if from == DType::Float4E2m1fnX2 {
            // safetensors counts halves of a byte where torch counts the bytes.
            match shape.last_mut() {
                Some(last) if last.is_multiple_of(2) => *last /= 2,
                _ => {
                    return Err(unsupported(format!("an odd number of F4 elements in a row of {name:?}")));
                }
            }
        }
        let to = wanted.filter(|&to| to != from && from.is_castable_float());
        let cast = match to {
            Some(to) => Some(
                cast::between(from, to)
                    .ok_or_else(|| unsupported(format!("cast of {name:?} from {from} to {to}")))?,
            ),
            None => None,
        };
        let spec = TensorSpec { name, dtype: to.unwrap_or(from), shape, tied_to: None };
        Ok(Self { source, offset, bytes, element_bytes: from.size(), cast, spec })
    }
}

/// Copies pieces, keeping the last source open.
struct Streamer<'a> {
    sources: &'a [PathBuf],
    open: Option<(usize, FileSource)>,
    buffer: Vec<u8>,
    cast: Vec<u8>,
}

impl Streamer<'_> {
    fn copy(&mut self, piece: &Piece, packer: &mut Packer<'_>) -> Result<()> {
        let source = match self.open.take() {
            Some((number, source)) if number == piece.source => source,
            _ => FileSource::open(&self.sources[piece.source])?,
        };
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
        self.open = Some((piece.source, source));
        Ok(())
    }
}
