//! The footer's JSON: typed parsing of untrusted text, and rendering.
//!
//! Parsing checks syntax and types only; `validate` checks what the numbers mean.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use super::{
    Checksums, FORMAT_V3, FORMAT_V4, Index, MAGIC, MAX_FOOTER_BYTES, Part, Shape, Signature, TRAILER_BYTES,
    checksum::Algorithm,
    signature::{self, RenderedSignature},
    validate,
};
use crate::error::{Error, ErrorKind, Result, ensure_memory};

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
/// [`ErrorKind::Format`] for everything FORMAT's rules refuse,
/// [`ErrorKind::Checksum`] if the index does not match its own digest,
/// [`ErrorKind::Memory`] if the memory that parsing may take cannot be had.
pub fn parse(json: &[u8], footer_offset: u64) -> Result<Index> {
    let text = std::str::from_utf8(json).map_err(|error| {
        Error::format(format!(
            "Corrupt footer: not UTF-8 at byte {} of its {}",
            error.valid_up_to(),
            json.len()
        ))
    })?;
    ensure_memory(text.len() as u64 * MEMORY_PER_BYTE)?;
    match serde_json::from_str::<Object<RawFooter<'_>>>(text).map(|Object(raw)| raw) {
        Ok(raw) if raw.format == FORMAT_V3 || raw.format == FORMAT_V4 => {
            validate::validate(raw, footer_offset)
        }
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

/// The footer JSON of `index`, as flashpack 0.4.5 spells it plus the extension keys.
#[must_use]
pub fn render(index: &Index) -> String {
    let single = match index.blocks() {
        [block] if block.offset() == 0 => Some(block),
        _ => None,
    };
    let footer = Rendered {
        format: if single.is_some() { FORMAT_V3 } else { FORMAT_V4 },
        target_dtype: single.map(|block| block.dtype().name()),
        align_bytes: index.align_bytes(),
        total_payload_bytes: single.is_none().then(|| index.payload_bytes()),
        total_elems: index.blocks().iter().map(super::Macroblock::elems).sum(),
        macroblocks: single.is_none().then(|| {
            let block = |block: &super::Macroblock| RenderedBlock {
                dtype: block.dtype().name(),
                offset_bytes: block.offset(),
                length_bytes: block.bytes(),
                length_elems: block.elems(),
            };
            index.blocks().iter().map(block).collect()
        }),
        index: index
            .records()
            .iter()
            .map(|record| RenderedRecord {
                name: record.name(),
                shape: record.shape(),
                offset: record.offset(),
                length: record.elems(),
                macroblock: single.is_none().then(|| record.block()),
            })
            .collect(),
        checksums: rendered_checksums(index),
        signature: index.signature().map(Signature::rendered),
        metadata: index.metadata(),
    };
    serde_json::to_string(&footer).expect("strings and integers always serialize")
}

/// The digests of `index`. Those of several files say together which bytes they are, but nothing can be verified by
/// them: each file's own have to be used.
fn rendered_checksums(index: &Index) -> Option<RenderedChecksums> {
    let unverified = index.parts().iter().filter(|part| part.checksums().is_none());
    let unverified_bytes = unverified.map(|part| part.range().end - part.range().start).sum();
    let all = || index.parts().iter().filter_map(Part::checksums);
    let footers = all().map(|checksums| checksums.footer().to_string()).collect::<String>();
    Some(RenderedChecksums {
        algorithm: index.algorithms()?,
        chunk_bytes: all().map(Checksums::chunk_bytes).max()?,
        digests: all().map(Checksums::digests_hex).collect(),
        footer: match index.checksums() {
            Some(_) => footers,
            None => Algorithm::default().digest(footers.as_bytes()).to_string(),
        },
        unverified_bytes,
    })
}

/// The footer `json` of a sound file with `signature` instead of any it had. All else stays as it is spelled there.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if that is longer than a footer may be, [`ErrorKind::Memory`].
pub fn signed(json: &str, signature: &Signature) -> Result<String> {
    ensure_memory(json.len() as u64 * MEMORY_PER_BYTE)?;
    let failed = |error: serde_json::Error| Error::format(format!("Corrupt footer: {error}"));
    let signature = serde_json::value::to_raw_value(&signature.rendered()).map_err(failed)?;
    let Members(mut members) = serde_json::from_str(json).map_err(failed)?;
    members.retain(|(key, _)| key != signature::KEY);
    members.push((signature::KEY.to_owned(), &signature));
    let signed = serde_json::to_string(&Members(members)).map_err(failed)?;
    check_length(&signed)?;
    Ok(signed)
}

/// Refuses to write a footer that nobody would read.
///
/// # Errors
/// [`ErrorKind::Unsupported`].
pub fn check_length(json: &str) -> Result<()> {
    if json.len() as u64 > MAX_FOOTER_BYTES {
        let what = format!(
            "needs a footer of {} bytes, over the limit of {MAX_FOOTER_BYTES}: write shards instead",
            json.len()
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok(())
}

fn unexpected_format(format: &str) -> Error {
    let version = |format: &str| format.strip_prefix("flashpack_v")?.parse::<u64>().ok();
    let advice = if version(format) > version(FORMAT_V4) {
        ": a newer version of flashpack wrote it, upgrade with `pip install --upgrade flashpack`"
    } else {
        ""
    };
    Error::format(format!("Unexpected format: {format:?} is neither {FORMAT_V3:?} nor {FORMAT_V4:?}{advice}"))
}

/// Says why `text` did not parse: an unknown format first (its keys may differ), else the path of the key at fault.
#[cold]
fn explain(text: &str, error: &serde_json::Error) -> Error {
    #[derive(Deserialize)]
    struct Format {
        format: String,
    }
    if let Ok(Format { format }) = serde_json::from_str(text)
        && format != FORMAT_V3
        && format != FORMAT_V4
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

/// A non-negative integer; serde's own `u64` would name Rust's type in its messages.
#[derive(Clone, Copy)]
pub(super) struct Count(pub(super) u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 0 to 2^64-1")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<Count, E> {
                Ok(Count(value))
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

/// A JSON object: serde alone would take a list for a struct, too, its values for the fields in turn.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> std::result::Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

/// The members of a JSON object, in order, their values as they are spelled.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[derive(Deserialize)]
pub(super) struct RawFooter<'a> {
    #[serde(borrow)]
    pub(super) format: Cow<'a, str>,
    pub(super) align_bytes: Count,
    #[serde(borrow)]
    pub(super) target_dtype: Option<Cow<'a, str>>,
    pub(super) total_elems: Count,
    pub(super) total_payload_bytes: Option<Count>,
    #[serde(borrow)]
    pub(super) macroblocks: Option<Vec<Object<RawBlock<'a>>>>,
    #[serde(borrow)]
    pub(super) index: Vec<Object<RawRecord<'a>>>,
    #[serde(borrow)]
    pub(super) checksums: Option<Object<RawChecksums<'a>>>,
    #[serde(borrow)]
    pub(super) signature: Option<Object<RawSignature<'a>>>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// How the one macroblock of [`FORMAT_V3`] is compressed.
    #[serde(borrow)]
    pub(super) fpz: Option<&'a RawValue>,
}

// Unknown keys of the footer are extensions, which a reader may ignore. In a macroblock or a record they would say
// something about the bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBlock<'a> {
    #[serde(borrow)]
    pub(super) dtype: Cow<'a, str>,
    pub(super) offset_bytes: Count,
    pub(super) length_bytes: Count,
    pub(super) length_elems: Count,
    /// How the macroblock is compressed.
    #[serde(borrow)]
    pub(super) fpz: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecord<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    pub(super) shape: Shape,
    pub(super) offset: Count,
    pub(super) length: Count,
    pub(super) macroblock: Option<Count>,
}

#[derive(Deserialize)]
pub(super) struct RawChecksums<'a> {
    #[serde(borrow)]
    pub(super) algorithm: Cow<'a, str>,
    pub(super) chunk_bytes: Count,
    #[serde(borrow)]
    pub(super) digests: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) footer: Cow<'a, str>,
}

#[derive(Deserialize)]
pub(super) struct RawSignature<'a> {
    #[serde(borrow)]
    pub(super) algorithm: Cow<'a, str>,
    /// What it and `signature` are is for the algorithm to say.
    #[serde(borrow)]
    pub(super) public_key: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) signature: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Rendered<'a> {
    format: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_dtype: Option<&'a str>,
    align_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_payload_bytes: Option<u64>,
    total_elems: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    macroblocks: Option<Vec<RenderedBlock<'a>>>,
    index: Vec<RenderedRecord<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksums: Option<RenderedChecksums>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<RenderedSignature>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct RenderedBlock<'a> {
    dtype: &'a str,
    offset_bytes: u64,
    length_bytes: u64,
    length_elems: u64,
}

#[derive(Serialize)]
struct RenderedRecord<'a> {
    name: &'a str,
    shape: &'a [u64],
    offset: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    macroblock: Option<usize>,
}

#[derive(Serialize)]
struct RenderedChecksums {
    algorithm: String,
    chunk_bytes: u64,
    digests: String,
    footer: String,
    #[serde(skip_serializing_if = "is_zero")]
    unverified_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}
