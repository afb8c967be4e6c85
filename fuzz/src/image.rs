//! Sound files drawn from bytes: any layout that the format allows, not only those that this library writes.

use arbitrary::{Arbitrary, Unstructured};
use flashpack::format::{DType, FORMAT_V4, checksum::Algorithm, footer, signature};
use serde_json::{Value, json};

use crate::to_usize;

const ALIGNMENTS: [u64; 6] = [0, 1, 3, 16, 128, 4096];
const DIGEST_CHUNKS: [u64; 3] = [4096, 8192, 1 << 20];
/// Few enough for thousands of files a second.
const MAX_BLOCKS: usize = 4;
const MAX_RECORDS: usize = 12;
const MAX_SIZE: u64 = 12;

struct Block {
    dtype: DType,
    offset: u64,
    elems: u64,
}

/// The bytes of a sound file.
///
/// # Errors
/// None: exhausted input draws zeros.
pub fn draw(u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let align = *u.choose(&ALIGNMENTS)?;
    let mut blocks = Vec::new();
    for _ in 0..u.int_in_range(1..=MAX_BLOCKS)? {
        blocks.push(Block { dtype: *u.choose(DType::ALL)?, offset: 0, elems: 0 });
    }
    let mut records = Vec::new();
    for number in 0..u.int_in_range(0..=MAX_RECORDS)? {
        let block = u.choose_index(blocks.len())?;
        records.push(record(u, number, block, &mut blocks[block], align, records.last())?);
    }
    let mut end = 0;
    for block in &mut blocks {
        block.offset = end + u.int_in_range(0..=4200)?;
        end = block.offset + block.elems * block.dtype.size();
    }
    let payload: Vec<u8> = (0..end).map(|at| u8::try_from(at % 251).expect("below 251")).collect();
    let mut footer = footer_of(&blocks, records, align, end);
    if bool::arbitrary(u)? {
        add_digests(&mut footer, &payload, *u.choose(&Algorithm::ALL)?, *u.choose(&DIGEST_CHUNKS)?);
    }
    if bool::arbitrary(u)? {
        add_signature(&mut footer, u.arbitrary()?, u.arbitrary()?);
    }
    let json = footer.to_string();
    Ok([&payload, json.as_bytes(), &footer::trailer(json.as_bytes())].concat())
}

/// A record at the end of `block`, or one tied to the `last`, if that is in the same block.
fn record(
    u: &mut Unstructured<'_>,
    number: usize,
    in_block: usize,
    block: &mut Block,
    align: u64,
    last: Option<&Value>,
) -> arbitrary::Result<Value> {
    let name = format!("r{number}");
    if let Some(last) = last.filter(|last| last["macroblock"] == in_block)
        && u.ratio(1, 5)?
    {
        let mut tied = last.clone();
        tied["name"] = name.into();
        return Ok(tied);
    }
    let mut shape = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        shape.push(u.int_in_range(0..=MAX_SIZE)?);
    }
    let length: u64 = shape.iter().product();
    let step = (1..=align.max(1)).find(|step| (step * block.dtype.size()).is_multiple_of(align.max(1)));
    let gap = u.int_in_range(0..=2)? * step.expect("align itself is one");
    let offset = (block.elems + gap).next_multiple_of(step.expect("align itself is one"));
    block.elems = offset + length;
    Ok(json!({"name": name, "shape": shape, "offset": offset, "length": length, "macroblock": in_block}))
}

fn footer_of(blocks: &[Block], records: Vec<Value>, align: u64, payload: u64) -> Value {
    let block = |block: &Block| {
        let (elems, size) = (block.elems, block.dtype.size());
        json!({
            "dtype": block.dtype.name(), "offset_bytes": block.offset,
            "length_bytes": elems * size, "length_elems": elems,
        })
    };
    json!({
        "format": FORMAT_V4, "align_bytes": align, "total_payload_bytes": payload,
        "total_elems": blocks.iter().map(|block| block.elems).sum::<u64>(),
        "macroblocks": blocks.iter().map(block).collect::<Vec<_>>(), "index": records,
    })
}

fn add_digests(footer: &mut Value, payload: &[u8], algorithm: Algorithm, chunk_bytes: u64) {
    let index = footer::parse(footer.to_string().as_bytes(), payload.len() as u64).expect("a sound footer");
    let chunk = to_usize(chunk_bytes);
    let digests: Vec<_> = payload.chunks(chunk).map(|chunk| algorithm.digest(chunk)).collect();
    let hex: String = digests.iter().map(ToString::to_string).collect();
    let own = footer::index_digest(&index, algorithm, chunk_bytes, &digests);
    footer["checksums"] = json!({
        "algorithm": algorithm.name(), "chunk_bytes": chunk_bytes, "digests": hex,
        "footer": own.to_string(),
    });
}

/// A signature that most probably does not hold, which no load minds.
fn add_signature(footer: &mut Value, public_key: [u8; 32], bytes: [u8; 64]) {
    footer["signature"] = json!({
        "algorithm": "ed25519", "public_key": signature::hex(&public_key), "signature": signature::hex(&bytes),
    });
}
