//! From what a footer claims to an [`Index`]: each rule of the format is checked here, once.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::raw::{Object, RawBlock, RawChecksums, RawFooter, RawRecord, RawSignature};
use super::{digest::index_digest, encoding};
use crate::{
    error::{Error, ErrorKind, Result},
    format::{
        Checksums, DType, Encoding, FORMAT_V3, Index, Macroblock, Part, Record, Signature,
        checksum::{self, Algorithm, Digest},
        names::{NameOrder, duplicate},
        shape::{Count, product},
        signature,
    },
};

/// Checks every rule and builds the index. `footer_offset` is where the footer starts, so where the payload must end.
pub(super) fn validate(raw: RawFooter<'_>, footer_offset: u64) -> Result<Index> {
    let (blocks, payload_bytes) =
        if raw.format == FORMAT_V3 { single_block(&raw)? } else { several_blocks(&raw)? };
    let encoding = encoding::check(&raw, payload_bytes)?;
    refuse_excess(&blocks, payload_bytes, encoding.as_ref(), footer_offset)?;
    refuse_overlapping_blocks(&blocks)?;

    let default_block = (raw.format == FORMAT_V3).then_some(0);
    let records = raw
        .index
        .into_iter()
        .enumerate()
        .map(|(number, Object(record))| {
            check_record(number, record, &blocks, raw.align_bytes.0, default_block)
        })
        .collect::<Result<Box<[Record]>>>()?;
    let mut index = Index {
        align_bytes: raw.align_bytes.0,
        payload_bytes,
        by_name: NameOrder::new(&records)
            .map_err(|(one, other)| duplicate(records[one].name(), one, other))?,
        blocks: blocks.into(),
        records,
        signature: raw.signature.map(|Object(raw)| check_signature(&raw)).transpose()?.flatten(),
        metadata: raw.metadata,
        parts: Part::whole(payload_bytes, None),
    };
    refuse_overlapping_records(&index)?;
    let checksums = raw.checksums.map(|Object(raw)| check_checksums(&raw, &index)).transpose()?.flatten();
    index.parts[0].checksums = checksums;
    Ok(index.stored(encoding))
}

/// Refuses what is stored beyond the footer's beginning, and macroblocks beyond the payload's end.
fn refuse_excess(
    blocks: &[Macroblock],
    payload_bytes: u64,
    encoding: Option<&Encoding>,
    footer_offset: u64,
) -> Result<()> {
    let stored_bytes = encoding.map_or(payload_bytes, Encoding::stored_bytes);
    if stored_bytes > footer_offset {
        let what = if encoding.is_some() { "frames" } else { "macroblocks" };
        return Err(Error::format(format!(
            "{what} reach past the payload: they end at byte {stored_bytes}, \
             but the footer starts at {footer_offset}"
        )));
    }
    let ends = blocks.iter().map(|block| block.file_range().end);
    match ends.enumerate().find(|&(_, end)| end > payload_bytes) {
        Some((number, end)) => Err(Error::format(format!(
            "macroblock {number} reaches past the payload: it ends at byte {end}, the payload at {payload_bytes}"
        ))),
        None => Ok(()),
    }
}

fn overflow(what: &str, number: u64) -> Error {
    Error::format(format!("{what} is {number}, which overflows"))
}

fn missing(key: &str, format: &str) -> Error {
    Error::format(format!("Corrupt footer: key {key} is missing or null, but {format} needs it"))
}

fn dtype(name: &str, of: &str) -> Result<DType> {
    DType::from_name(name).ok_or_else(|| Error::format(format!("Unsupported dtype {name:?} of {of}")))
}

/// Bytes of `elems` elements, such that positions within them fit every signed 64-bit consumer.
fn byte_length(elems: u64, dtype: DType, of: &str) -> Result<u64> {
    elems
        .checked_mul(dtype.size())
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| overflow(&format!("the number of {dtype} elements of {of}"), elems))
}

/// Refuses what flashpack's fpz packs: their elements are split into planes of bytes and compressed.
fn refuse_compressed(fpz: Option<&RawValue>, of: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Fpz {
        codec: String,
    }
    let Some(fpz) = fpz else {
        return Ok(());
    };
    let codec = serde_json::from_str(fpz.get()).map_or_else(|_| "unknown".to_owned(), |Fpz { codec }| codec);
    Err(Error::format(format!(
        "{of} is compressed (fpz, codec {codec:?}), which this version does not read: pack the model again without \
         fpz, by the flashpack that made this file"
    )))
}

fn single_block(raw: &RawFooter<'_>) -> Result<(Vec<Macroblock>, u64)> {
    refuse_compressed(raw.fpz, "the macroblock")?;
    let name = raw.target_dtype.as_deref().ok_or_else(|| missing("target_dtype", &raw.format))?;
    let dtype = dtype(name, "the macroblock")?;
    let bytes = byte_length(raw.total_elems.0, dtype, "the macroblock")?;
    Ok((vec![Macroblock { dtype, offset: 0, bytes }], bytes))
}

fn several_blocks(raw: &RawFooter<'_>) -> Result<(Vec<Macroblock>, u64)> {
    let payload = raw.total_payload_bytes.ok_or_else(|| missing("total_payload_bytes", &raw.format))?.0;
    let blocks = raw.macroblocks.as_deref().ok_or_else(|| missing("macroblocks", &raw.format))?;
    if blocks.is_empty() {
        return Err(Error::format("Corrupt footer: key macroblocks is an empty list"));
    }
    let blocks = blocks
        .iter()
        .enumerate()
        .map(|(number, Object(block))| check_block(number, block))
        .collect::<Result<_>>()?;
    Ok((blocks, payload))
}

fn check_block(number: usize, raw: &RawBlock<'_>) -> Result<Macroblock> {
    let of = format!("macroblock {number}");
    refuse_compressed(raw.fpz, &of)?;
    let dtype = dtype(&raw.dtype, &of)?;
    let bytes = byte_length(raw.length_elems.0, dtype, &of)?;
    if bytes != raw.length_bytes.0 {
        return Err(Error::format(format!(
            "{of} has length_bytes {}, but {} elements of {dtype} are {bytes} bytes",
            raw.length_bytes.0, raw.length_elems.0
        )));
    }
    let offset = raw.offset_bytes.0;
    if offset.checked_add(bytes).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(overflow(&format!("the end of {of} with {bytes} bytes at offset_bytes"), offset));
    }
    Ok(Macroblock { dtype, offset, bytes })
}

fn check_record(
    number: usize,
    raw: RawRecord<'_>,
    blocks: &[Macroblock],
    align_bytes: u64,
    default_block: Option<usize>,
) -> Result<Record> {
    let fail = |what: String| Error::format(format!("record {:?} (index {number}) {what}", raw.name));
    let block = match (raw.macroblock, default_block) {
        (Some(Count(block)), _) => {
            let count = blocks.len();
            let absent = || fail(format!("is in macroblock {block}, but there are only {count} macroblocks"));
            usize::try_from(block).ok().filter(|&block| block < count).ok_or_else(absent)?
        }
        (None, Some(block)) => block,
        (None, None) => return Err(fail("has no key macroblock".to_owned())),
    };
    let (shape, offset, elems) = (raw.shape, raw.offset.0, raw.length.0);
    let overflow = || fail(format!("has shape {shape:?}, whose product overflows"));
    let product = product(&shape).ok_or_else(overflow)?;
    if product != elems {
        return Err(fail(format!("has length {elems}, but its shape {shape:?} has {product} elements")));
    }
    let block_elems = blocks[block].elems();
    if elems > 0 {
        if offset.checked_add(elems).is_none_or(|end| end > block_elems) {
            return Err(fail(format!(
                "reaches past its macroblock {block}: offset {offset} plus length {elems} \
                 exceeds its {block_elems} elements"
            )));
        }
        let step = blocks[block].dtype().align_elems(align_bytes);
        if offset % step != 0 {
            return Err(fail(format!(
                "is misaligned: offset {offset} is not a multiple of {step} elements (align_bytes {align_bytes})"
            )));
        }
    }
    Ok(Record { name: raw.name.into(), shape, block, offset, elems })
}

fn refuse_overlapping_blocks(blocks: &[Macroblock]) -> Result<()> {
    let mut extents: Vec<Extent> = blocks
        .iter()
        .enumerate()
        .map(|(owner, block)| Extent { block: 0, range: block.file_range(), owner })
        .collect();
    match first_overlap(&mut extents, |_, _| false) {
        Some((one, other)) => Err(Error::format(format!(
            "macroblock {} at bytes {:?} overlaps macroblock {} at bytes {:?}",
            one.owner, one.range, other.owner, other.range
        ))),
        None => Ok(()),
    }
}

/// Tied records have the identical range; every other overlap is refused.
fn refuse_overlapping_records(index: &Index) -> Result<()> {
    let extent = |(owner, record): (usize, &Record)| Extent {
        block: record.block,
        range: index.range_in_block(record),
        owner,
    };
    let mut extents: Vec<Extent> = index.records.iter().enumerate().map(extent).collect();
    match first_overlap(&mut extents, |one, other| one == other) {
        Some((one, other)) => Err(Error::format(format!(
            "record {:?} at bytes {:?} of macroblock {} overlaps record {:?} at bytes {:?}",
            index.records[one.owner].name, one.range, one.block, index.records[other.owner].name, other.range
        ))),
        None => Ok(()),
    }
}

/// The bytes that a block or record claims.
struct Extent {
    block: usize,
    range: Range<u64>,
    owner: usize,
}

/// Two extents of one block that share bytes and are not `tied`. Sorts `extents` and drops the empty ones.
fn first_overlap(
    extents: &mut Vec<Extent>,
    tied: impl Fn(&Range<u64>, &Range<u64>) -> bool,
) -> Option<(&Extent, &Extent)> {
    extents.retain(|extent| !extent.range.is_empty());
    extents.sort_unstable_by_key(|extent| (extent.block, extent.range.start, extent.range.end));
    let overlap = |(one, other): &(&Extent, &Extent)| {
        one.block == other.block && other.range.start < one.range.end && !tied(&one.range, &other.range)
    };
    extents.iter().zip(extents.iter().skip(1)).find(overlap)
}

/// Digests in an algorithm this library does not know are no digests to it.
fn check_checksums(raw: &RawChecksums<'_>, index: &Index) -> Result<Option<Checksums>> {
    let Some(algorithm) = Algorithm::from_name(&raw.algorithm) else {
        return Ok(None);
    };
    let chunk_bytes = raw.chunk_bytes.0;
    checksum::check_chunk_bytes("checksums", chunk_bytes)?;
    let digests = parse_digests(algorithm, "digests", &raw.digests)?;
    let expected = index.payload_bytes.div_ceil(chunk_bytes);
    if digests.len() as u64 != expected {
        return Err(Error::format(format!(
            "checksums.digests holds {} digests, but a payload of {} bytes has {expected} chunks of {chunk_bytes}",
            digests.len(),
            index.payload_bytes
        )));
    }
    let footer = parse_digests(algorithm, "footer", &raw.footer)?;
    let [footer] = *footer else {
        return Err(Error::format(format!("checksums.footer holds {} digests instead of one", footer.len())));
    };
    let actual = index_digest(index, algorithm, chunk_bytes, &digests);
    if actual != footer {
        return Err(Error::new(
            ErrorKind::Checksum,
            format!("the index does not match its digest: expected {footer}, got {actual}"),
        ));
    }
    Ok(Some(Checksums { algorithm, chunk_bytes, digests, footer }))
}

fn parse_digests(algorithm: Algorithm, key: &str, hex: &str) -> Result<Box<[Digest]>> {
    let digits = algorithm.digits();
    let malformed =
        || Error::format(format!("checksums.{key} is not a sequence of {digits}-digit hexadecimal numbers"));
    let digest = |digits| std::str::from_utf8(digits).ok().and_then(|digits| algorithm.parse(digits));
    hex.as_bytes().chunks(digits).map(|digits| digest(digits).ok_or_else(malformed)).collect()
}

/// A signature in an algorithm this library does not know is no signature to it. What the others sign is not looked
/// at here: a load trusts no key.
fn check_signature(raw: &RawSignature<'_>) -> Result<Option<Signature>> {
    if raw.algorithm != signature::ALGORITHM {
        return Ok(None);
    }
    Ok(Some(Signature {
        public_key: parse_hex("public_key", raw.public_key)?,
        bytes: parse_hex("signature", raw.signature)?,
    }))
}

fn parse_hex<const N: usize>(key: &str, digits: Option<&RawValue>) -> Result<[u8; N]> {
    let digits = digits.and_then(|digits| serde_json::from_str::<String>(digits.get()).ok());
    digits
        .and_then(|digits| signature::from_hex(&digits))
        .ok_or_else(|| Error::format(format!("signature.{key} is not a {}-digit hexadecimal number", 2 * N)))
}
