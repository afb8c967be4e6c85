//! Several files as one: their indices over one range of offsets, in which the files lie one behind the other.

use std::collections::BTreeMap;

use super::{BLOCK_ALIGN_BYTES, Checksums, Index, Macroblock, Record, index::Part, names::NameOrder};
use crate::error::{Error, Result};

pub use super::signature::SET_KEY;

impl Index {
    /// Joins the indices of `files`, each with what errors call it. [`Index::parts`] tells where each file's payload
    /// comes to lie: at a multiple of `page_bytes`, so that it can be mapped there, and of the chunks of all digests.
    /// Each part keeps its file's digests. Of the files' signatures none is one of all files.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) if two files hold a name, or all exceed 2^63 bytes.
    pub fn join(mut files: Vec<(String, Self)>, page_bytes: u64) -> Result<Self> {
        if files.len() == 1 {
            let (_, mut index) = files.remove(0);
            index.metadata.remove(SET_KEY);
            return Ok(index);
        }
        let chunk_bytes = files.iter().filter_map(|(_, index)| index.checksums()).map(Checksums::chunk_bytes);
        // All of them are powers of two.
        let unit = chunk_bytes.fold(page_bytes.max(BLOCK_ALIGN_BYTES), u64::max);
        let too_large = || Error::format("the files together exceed 2^63 bytes");
        let (mut blocks, mut records, mut parts) = (vec![], vec![], vec![]);
        let (mut metadata, mut labels, mut end) = (BTreeMap::new(), vec![], 0_u64);
        for (label, index) in files {
            let base = end.checked_next_multiple_of(unit).ok_or_else(too_large)?;
            end = base.checked_add(index.payload_bytes).ok_or_else(too_large)?;
            if i64::try_from(end).is_err() {
                return Err(too_large());
            }
            let moved = |part: Part| Part { range: base + part.range.start..base + part.range.end, ..part };
            parts.extend(index.parts.into_iter().map(moved));
            let first_block = blocks.len();
            let moved = |block: Macroblock| Macroblock { offset: base + block.offset, ..block };
            blocks.extend(index.blocks.into_iter().map(moved));
            labels.push((records.len(), label));
            let moved = |record: Record| Record { block: first_block + record.block, ..record };
            records.extend(index.records.into_iter().map(moved));
            metadata.extend(index.metadata);
        }
        metadata.remove(SET_KEY);
        Ok(Self {
            align_bytes: 0,
            payload_bytes: end,
            blocks: blocks.into(),
            by_name: NameOrder::new(&records).map_err(|pair| duplicate(&records, &labels, pair))?,
            records: records.into(),
            signature: None,
            metadata,
            parts: parts.into(),
        })
    }
}

/// The error of two records of one name; `labels` are those of the files, each with the number of its first record.
fn duplicate(records: &[Record], labels: &[(usize, String)], (one, other): (usize, usize)) -> Error {
    let file_of = |record| &labels[labels.partition_point(|(first, _)| *first <= record) - 1].1;
    let (name, one, other) = (&records[one].name, file_of(one), file_of(other));
    Error::format(format!("duplicate name {name:?}: {one} and {other} both hold it"))
}
