//! The footer's JSON as it is written.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use super::{MEMORY_PER_BYTE, encoding};
use crate::{
    error::{Error, ErrorKind, Result, ensure_memory},
    format::{
        Checksums, FORMAT_V3, FORMAT_V4, FORMAT_V5, Index, MAX_FOOTER_BYTES, Macroblock, Part, Signature,
        checksum::Algorithm,
        signature::{self, RenderedSignature},
    },
};

/// The footer JSON of `index`, as flashpack 0.4.5 spells it plus the extension keys.
#[must_use]
pub fn render(index: &Index) -> String {
    let single = match index.blocks() {
        [block] if block.offset() == 0 && index.encoding().is_none() => Some(block),
        _ => None,
    };
    let footer = Rendered {
        format: match (single, index.encoding()) {
            (Some(_), _) => FORMAT_V3,
            (None, None) => FORMAT_V4,
            (None, Some(_)) => FORMAT_V5,
        },
        target_dtype: single.map(|block| block.dtype().name()),
        align_bytes: index.align_bytes(),
        total_payload_bytes: single.is_none().then(|| index.payload_bytes()),
        total_elems: index.blocks().iter().map(Macroblock::elems).sum(),
        macroblocks: single.is_none().then(|| index.blocks().iter().map(rendered_block).collect()),
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
        encoding: index.encoding().map(encoding::rendered),
        metadata: index.metadata(),
        signature: index.signature().map(Signature::rendered),
    };
    serde_json::to_string(&footer).expect("strings and integers always serialize")
}

fn rendered_block(block: &Macroblock) -> RenderedBlock<'_> {
    RenderedBlock {
        dtype: block.dtype().name(),
        offset_bytes: block.offset(),
        length_bytes: block.bytes(),
        length_elems: block.elems(),
    }
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
    encoding: Option<encoding::Rendered>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    /// Where [`signed`] puts it, so that a file that is compressed and decompressed is the same again.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<RenderedSignature>,
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
