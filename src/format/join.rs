//! Several files as one: their indices over one range of offsets, in which the files lie one behind the other.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{BLOCK_ALIGN_BYTES, Checksums, Index, checksum::Algorithm, index::NameOrder};
use crate::error::{Error, Result};

/// Footer metadata that tells the shards of one save from those of another.
pub const SET_KEY: &str = "flashpack_set";

impl Index {
    /// Joins the indices of `files`, each with what errors call it. [`Index::parts`] tells where each file's payload
    /// comes to lie: at a multiple of a page and of the digests' chunks, so that those stay whole. There are digests
    /// if every file has some, by one function and of chunks of one size; that of the index is that of the files' own.
    /// Of their signatures none is one of all files.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) if two files hold a name, or all exceed 2^63 bytes.
    pub fn join(mut files: Vec<(String, Self)>) -> Result<Self> {
        if files.len() == 1 {
            let (_, mut index) = files.remove(0);
            index.metadata.remove(SET_KEY);
            return Ok(index);
        }
        let kind = common_digests(&files);
        let unit = kind.map_or(0, |(_, chunk_bytes)| chunk_bytes).max(BLOCK_ALIGN_BYTES);
        let too_large = || Error::format("the files together exceed 2^63 bytes");
        let (mut blocks, mut records, mut parts, mut digests) = (vec![], vec![], vec![], vec![]);
        let (mut metadata, mut labels, mut footers, mut end) =
            (BTreeMap::new(), vec![], String::new(), 0_u64);
        for (label, index) in files {
            let base = end.checked_next_multiple_of(unit).ok_or_else(too_large)?;
            end = base.checked_add(index.payload_bytes).ok_or_else(too_large)?;
            if i64::try_from(end).is_err() {
                return Err(too_large());
            }
            parts.push(base..end);
            let first_block = blocks.len();
            for mut block in index.blocks {
                block.offset += base;
                blocks.push(block);
            }
            labels.push((records.len(), label));
            for mut record in index.records {
                record.block += first_block;
                records.push(record);
            }
            if let Some(checksums) = index.checksums {
                digests.extend(checksums.digests);
                write!(footers, "{}", checksums.footer).expect("strings take everything");
            }
            metadata.extend(index.metadata);
        }
        metadata.remove(SET_KEY);
        let file_of = |record: usize| &labels[labels.partition_point(|(first, _)| *first <= record) - 1].1;
        let by_name = NameOrder::new(&records).map_err(|(one, other)| {
            let name = &records[one].name;
            Error::format(format!(
                "duplicate name {name:?}: {} and {} both hold it",
                file_of(one),
                file_of(other)
            ))
        })?;
        let checksums = kind.map(|(algorithm, chunk_bytes)| Checksums {
            algorithm,
            chunk_bytes,
            digests: digests.into(),
            footer: algorithm.digest(footers.as_bytes()),
        });
        Ok(Self {
            align_bytes: 0,
            payload_bytes: end,
            blocks: blocks.into(),
            records: records.into(),
            by_name,
            checksums,
            signature: None,
            metadata,
            parts: parts.into(),
        })
    }
}

/// The function and the size of the digests' chunks, if all files have digests and agree.
fn common_digests(files: &[(String, Index)]) -> Option<(Algorithm, u64)> {
    let kind = |checksums: &Checksums| (checksums.algorithm(), checksums.chunk_bytes());
    let mut kinds = files.iter().map(|(_, index)| index.checksums().map(kind));
    let first = kinds.next()??;
    kinds.all(|kind| kind == Some(first)).then_some(first)
}
