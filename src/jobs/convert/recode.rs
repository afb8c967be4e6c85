//! FlashPack to FlashPack: the same payload, stored in another way.

use std::path::Path;

use super::Converted;
use crate::{
    codec::Level,
    error::{At, Error, ErrorKind, Result, zeroed},
    format::{
        Index,
        checksum::{Chunker, Digest},
        footer,
    },
    io::{Source as _, read::InOrder, write::Growing},
    jobs::encode::Encoder,
    model::{Model, expect_flashpack},
    progress::Progress,
};

/// Bytes of payload that are read at a time.
const STEP_BYTES: u64 = 8 << 20;

/// Writes the FlashPack file at `path`, or of that URL, to `destination`, compressed by `level`, or as it is without one. The
/// index, its digest and a signature stay: those are of what the file holds, however it is stored. `None`, with nothing done, for
/// a model of several files.
///
/// # Errors
/// Those of [`Model::open`] and of writing; [`ErrorKind::Format`] for a file of
/// another format; [`ErrorKind::Checksum`] for a damaged one.
pub fn recode(
    path: &Path,
    destination: &Path,
    level: Option<Level>,
    progress: Progress<'_>,
) -> Result<Option<Converted>> {
    let model = Model::open(path)?;
    expect_flashpack(&model)?;
    let name = model.files.path();
    if model.index.parts().len() > 1 {
        return Ok(None);
    }
    let mut encoder = level.map(Encoder::new).transpose()?;
    let index = &*model.index;
    let mut file = Growing::create(destination, index.payload_bytes())?;
    let digests = copy(&model, &mut encoder, &mut file, progress)?;
    let checksums = index.checksums();
    if let Some(damaged) =
        checksums.and_then(|it| it.digests().iter().zip(&digests).position(|(a, b)| a != b))
    {
        let what = format!("chunk {damaged} is damaged: its bytes do not match their digest");
        return Err(Error::new(ErrorKind::Checksum, what).at(name));
    }
    let encoding = encoder.map(|encoder| encoder.finish(index, &mut file)).transpose()?;
    let json = footer::render(&Index::clone(index).stored(encoding));
    footer::check_length(&json).at(destination)?;
    file.write(json.as_bytes())?;
    file.write(&footer::trailer(json.as_bytes()))?;
    Ok(Some(Converted { tensors: index.records().len(), bytes: file.finish()?.commit()? }))
}

/// Passes the payload on, and computes its digests, if the file has some to compare them with.
fn copy(
    model: &Model,
    encoder: &mut Option<Encoder>,
    file: &mut Growing,
    progress: Progress<'_>,
) -> Result<Vec<Digest>> {
    let (files, index) = (&model.files, &*model.index);
    let checksums = index.checksums();
    let mut chunker = checksums.map(|checksums| Chunker::new(checksums.algorithm(), checksums.chunk_bytes()));
    let (mut input, end) = (InOrder::new(files), index.payload_bytes());
    let mut buffer = zeroed(end.min(STEP_BYTES)).at(files.path())?;
    progress.start(end);
    let mut position = 0;
    while position < end {
        let step = STEP_BYTES.min(end - position);
        let piece = &mut buffer[..usize::try_from(step).expect("at most STEP_BYTES")];
        input.read_exact_at(piece, position, end)?;
        if let Some(chunker) = &mut chunker {
            chunker.update(piece);
        }
        match encoder {
            Some(encoder) => encoder.write(piece, index, file)?,
            None => file.write(piece)?,
        }
        progress.advance(step)?;
        position += step;
    }
    Ok(chunker.map(Chunker::finish).unwrap_or_default())
}
