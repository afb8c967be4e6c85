//! The footer's JSON: typed parsing of untrusted text, and rendering.
//!
//! Parsing checks syntax and types only; `validate` checks what the numbers mean.

mod digest;
mod encoding;
mod raw;
mod render;
mod validate;

use serde::Deserialize;

use super::{FORMAT_V3, FORMAT_V4, FORMAT_V5, Index, MAGIC, MAX_FOOTER_BYTES, TRAILER_BYTES};
use crate::error::{Error, Result, ensure_memory};
pub use digest::index_digest;
pub use render::{check_length, render, signed};

use self::raw::{Object, RawFooter};

/// Finds the footer: given the file's length and its last [`TRAILER_BYTES`] bytes, the offset and length of the JSON.
///
/// # Errors
/// The file is too short, ends in other bytes than [`MAGIC`], or names a footer that cannot lie before the trailer.
pub fn locate(file_bytes: u64, trailer: &[u8]) -> Result<(u64, usize)> {
    let Some(before_trailer) = file_bytes.checked_sub(TRAILER_BYTES as u64) else {
        return Err(Error::format(format!(
            "File too small: {file_bytes} bytes, but a FlashPack file has at least {TRAILER_BYTES}"
        )));
    };
    let (length, magic) = trailer.split_at(8);
    if magic != MAGIC {
        return Err(Error::format(format!(
            "Bad magic: the file ends in \"{}\" instead of \"{}\": it is truncated, or no FlashPack file",
            magic.escape_ascii(),
            MAGIC.escape_ascii()
        )));
    }
    let length = length.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    let offset = before_trailer.checked_sub(length).ok_or_else(|| {
        Error::format(format!(
            "Corrupt footer length: {length} bytes, but only {before_trailer} lie before the trailer"
        ))
    })?;
    match usize::try_from(length) {
        Ok(bytes) if length <= MAX_FOOTER_BYTES => Ok((offset, bytes)),
        _ => Err(Error::format(format!(
            "Corrupt footer length: {length} bytes, more than the {MAX_FOOTER_BYTES} a footer may have"
        ))),
    }
}

/// Bytes of memory that a byte of JSON may turn into, at the most, on its way to an [`Index`]; the worst footers known
/// are those of tests/footer_memory.rs.
const MEMORY_PER_BYTE: u64 = 16;

/// Parses and validates the footer's JSON of a file whose footer starts at `footer_offset`.
///
/// # Errors
/// [`ErrorKind::Format`](crate::ErrorKind::Format) for everything FORMAT's rules refuse,
/// [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) if the index does not match its own digest,
/// [`ErrorKind::Memory`](crate::ErrorKind::Memory) if the memory that parsing may take cannot be had.
pub fn parse(json: &[u8], footer_offset: u64) -> Result<Index> {
    let text = std::str::from_utf8(json).map_err(|error| {
        Error::format(format!(
            "Corrupt footer: not UTF-8 at byte {} of its {}",
            error.valid_up_to(),
            json.len()
        ))
    })?;
    validate::validate(raw(text)?, footer_offset)
}

/// What `json`, which [`Model::footer`](crate::model::Model::footer) gave somebody, says of the tensors, without any
/// digest, and the bytes behind each digest if there are some. Nobody has compared it with a file.
///
/// # Errors
/// As [`parse`].
pub fn outline(json: &str) -> Result<(Index, Option<u64>)> {
    let mut raw = raw(json)?;
    let chunk_bytes = raw.checksums.take().map(|Object(checksums)| checksums.chunk_bytes.0);
    Ok((validate::validate(raw, u64::MAX)?, chunk_bytes))
}

fn raw(text: &str) -> Result<RawFooter<'_>> {
    ensure_memory(text.len() as u64 * MEMORY_PER_BYTE)?;
    match serde_json::from_str::<Object<RawFooter<'_>>>(text).map(|Object(raw)| raw) {
        Ok(raw) if is_known(&raw.format) => Ok(raw),
        Ok(raw) => Err(unexpected_format(&raw.format)),
        Err(error) => Err(explain(text, &error)),
    }
}

/// The trailer that follows `json` in a file.
#[must_use]
pub fn trailer(json: &[u8]) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..8].copy_from_slice(&(json.len() as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&MAGIC);
    bytes
}

fn is_known(format: &str) -> bool {
    [FORMAT_V3, FORMAT_V4, FORMAT_V5].contains(&format)
}

fn unexpected_format(format: &str) -> Error {
    let version = |format: &str| format.strip_prefix("flashpack_v")?.parse::<u64>().ok();
    let advice = if version(format) > version(FORMAT_V5) {
        ": a newer version of flashpack wrote it, upgrade with `pip install --upgrade flashpack`"
    } else {
        ""
    };
    Error::format(format!(
        "Unexpected format: {format:?} is none of {FORMAT_V3:?}, {FORMAT_V4:?} and {FORMAT_V5:?}{advice}"
    ))
}

/// Says why `text` did not parse: an unknown format first (its keys may differ), else the path of the key at fault.
#[cold]
fn explain(text: &str, error: &serde_json::Error) -> Error {
    #[derive(Deserialize)]
    struct Format {
        format: String,
    }
    if let Ok(Format { format }) = serde_json::from_str(text)
        && !is_known(&format)
    {
        return unexpected_format(&format);
    }
    if error.is_syntax() || error.is_eof() {
        return Error::format(format!("Corrupt footer: not JSON: {error}"));
    }
    if let Some(key) = unknown_key(&error.to_string()) {
        return Error::format(format!(
            "has a macroblock or record with the key {key:?}, which this version does not know and which may \
             change what the bytes mean: update flashpack, or pack the file again without it"
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Object<RawFooter<'_>>>(&mut deserializer) {
        Err(located) if located.path().iter().next().is_none() => {
            Error::format(format!("Corrupt footer: {}", located.inner()))
        }
        Err(located) => Error::format(format!("Corrupt footer: key {}: {}", located.path(), located.inner())),
        Ok(_) => Error::format(format!("Corrupt footer: {error}")),
    }
}

/// The key that serde refuses in `message`, if that is what it says: such errors have no structure.
fn unknown_key(message: &str) -> Option<&str> {
    Some(message.strip_prefix("unknown field `")?.split_once("`, expected")?.0)
}
