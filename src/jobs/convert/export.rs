//! FlashPack to safetensors.

use std::{cmp::Reverse, collections::HashMap, path::Path};

use safetensors::tensor::{Metadata, TensorInfo};

use super::Converted;
use crate::{
    error::{At, Error, ErrorKind, Result},
    format::{Index, Record, safetensors::MAX_HEADER_BYTES},
    io::{Source as _, write::Growing},
    jobs::pieces::{Pieces, in_batches},
    model::{Model, expect_flashpack},
    progress::Progress,
};

/// safetensors headers are padded with spaces to a multiple of this.
const HEADER_ALIGN_BYTES: usize = 8;

/// Writes the tensors of the model at `path`, as [`Model::open`] takes it, to a safetensors file at `destination`, some
/// megabytes at a time. Tied tensors are written once for each name, as safetensors has no way to say that they are one.
///
/// # Errors
/// Those of [`Model::open`]; [`ErrorKind::Checksum`] for bytes that do not match their digest; [`ErrorKind::Format`] for a
/// file that is safetensors already; [`ErrorKind::Unsupported`] for a type that safetensors does not have;
/// [`ErrorKind::Io`].
pub fn to_safetensors(path: &Path, destination: &Path, progress: Progress<'_>) -> Result<Converted> {
    let model = Model::open(path)?;
    expect_flashpack(&model)?;
    let index = &model.index;
    if destination.canonicalize().is_ok_and(|other| path.canonicalize().is_ok_and(|path| path == other)) {
        return Err(Error::argument("is both source and destination").at(path));
    }
    // The order safetensors asks for: widest elements first, so that all are aligned, then by name.
    let mut records: Vec<&Record> = index.records().iter().collect();
    records.sort_by_cached_key(|record| {
        (Reverse(index.blocks()[record.block()].dtype().to_safetensors()), record.name())
    });
    let (header, payload_bytes) = header(index, &records).at(path)?;
    let total_bytes = (header.len() as u64).checked_add(payload_bytes).ok_or_else(too_large).at(path)?;
    let mut file = Growing::create(destination, total_bytes)?;
    progress.start(payload_bytes);
    file.write(&header)?;
    let mut memory = Pieces::default();
    let ranges = records.iter().map(|record| index.file_range(record)).enumerate();
    for batch in in_batches(ranges, model.files.is_far()) {
        // The new file has no digests: damage has to show here or never.
        memory.read(&model, batch.iter().map(|(_, range)| range.clone()), true)?;
        for (_, range) in &batch {
            file.write(memory.of(range))?;
            progress.advance(range.end - range.start)?;
        }
    }
    Ok(Converted { tensors: records.len(), bytes: file.finish()?.commit()? })
}

/// The header's length and JSON, and the bytes of the tensors behind it.
fn header(index: &Index, records: &[&Record]) -> Result<(Vec<u8>, u64)> {
    let mut tensors = Vec::with_capacity(records.len());
    let mut end = 0_usize;
    for record in records {
        if record.name() == "__metadata__" {
            let what = "holds a tensor named \"__metadata__\", which safetensors reserves";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let from = index.blocks()[record.block()].dtype();
        let dtype = from.to_safetensors().ok_or_else(|| {
            let what =
                format!("Unsupported dtype: safetensors has no {from}, the type of {:?}", record.name());
            Error::new(ErrorKind::Unsupported, what)
        })?;
        let shape = shape(record, fits(from.safetensors_elems())?)?;
        let range = index.range_in_block(record);
        let start = end;
        end = fits(range.end - range.start)?.checked_add(end).ok_or_else(too_large)?;
        tensors.push((record.name().to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let mut user: HashMap<String, String> = index.metadata().clone().into_iter().collect();
    // transformers refuses safetensors files that do not name the framework their tensors come from.
    user.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    let header = Metadata::new(Some(user), tensors).map_err(|error| Error::argument(error.to_string()))?;
    let mut json = serde_json::to_vec(&header).map_err(|error| Error::argument(error.to_string()))?;
    if json.len() as u64 > MAX_HEADER_BYTES {
        let what = format!(
            "needs a safetensors header of {} bytes, over its limit of {MAX_HEADER_BYTES}",
            json.len()
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    json.resize(json.len().next_multiple_of(HEADER_ALIGN_BYTES), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok((bytes, end as u64))
}

/// The shape of `record` in a dtype that has so many elements for one of its own.
fn shape(record: &Record, elems: usize) -> Result<Vec<usize>> {
    let mut shape = record.shape().iter().map(|&size| fits(size)).collect::<Result<Vec<usize>>>()?;
    match shape.last_mut() {
        Some(last) => *last = last.checked_mul(elems).ok_or_else(too_large)?,
        None if elems > 1 => shape.push(elems),
        None => {}
    }
    Ok(shape)
}

fn fits(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::argument("is too large for this machine's address space")
}
