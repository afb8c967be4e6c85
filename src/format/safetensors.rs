//! The header of a safetensors file: from its JSON to an [`Index`], so that such files load as they are.

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;

use super::{
    DType, Index, Macroblock, Record, Shape,
    index::Part,
    names::{NameOrder, duplicate},
    shape::product,
};
use crate::error::{Error, ErrorKind, Result, ensure_memory};

/// Bytes before the header's JSON: its length, little endian.
pub const PREFIX_BYTES: usize = 8;
/// Largest header, by that format's own reader.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of memory that a byte of header may turn into, at the most; see tests/footer_memory.rs.
const MEMORY_PER_HEADER_BYTE: u64 = 16;

/// What the header of a sound file says.
pub struct Header {
    /// The tensors in the order of their bytes, which leave no gap.
    pub tensors: Vec<HeaderTensor>,
    /// The user's own strings.
    pub metadata: BTreeMap<String, String>,
    payload_bytes: u64,
}

/// A tensor as the header has it.
pub struct HeaderTensor {
    /// Its name.
    pub name: String,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    dtype: safetensors::Dtype,
    shape: Shape,
}

/// Whether a file of `file_bytes` that begins with `start` claims to be safetensors: a length that fits, and an object.
#[must_use]
pub fn claims(start: &[u8], file_bytes: u64) -> bool {
    let Some((prefix, json)) = start.split_first_chunk::<PREFIX_BYTES>() else {
        return false;
    };
    json.first() == Some(&b'{') && header_bytes(*prefix, file_bytes).is_ok()
}

/// The length of the header's JSON, which follows `prefix`.
///
/// # Errors
/// [`ErrorKind::Format`] if it exceeds [`MAX_HEADER_BYTES`] or the file.
pub fn header_bytes(prefix: [u8; PREFIX_BYTES], file_bytes: u64) -> Result<u64> {
    let length = u64::from_le_bytes(prefix);
    match file_bytes.checked_sub(PREFIX_BYTES as u64) {
        Some(rest) if length <= rest && length <= MAX_HEADER_BYTES => Ok(length),
        _ => Err(damaged(&format!("a header of {length} bytes in a file of {file_bytes}"))),
    }
}

/// The error of a file that is too short for a header.
#[must_use]
pub fn too_short(file_bytes: u64) -> Error {
    damaged(&format!("{file_bytes} bytes are too few for a header"))
}

/// The error of a file that is damaged, or was never of this format, for the reason given.
pub fn damaged(why: &str) -> Error {
    Error::format(format!("is not a sound safetensors file: {why}"))
}

impl Header {
    /// Parses the header's JSON of a file of `file_bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] unless the tensors' sizes are those of their shapes and they fill the file to its end.
    pub fn parse(json: &[u8], file_bytes: u64) -> Result<Self> {
        ensure_memory((json.len() as u64).saturating_mul(MEMORY_PER_HEADER_BYTE))?;
        let header: Metadata = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        let payload = (PREFIX_BYTES + json.len()) as u64;
        let (tensors, room) = (header.data_len() as u64, file_bytes.saturating_sub(payload));
        if tensors != room || i64::try_from(file_bytes).is_err() {
            let cut = match payload.checked_add(tensors) {
                Some(whole) if tensors > room => {
                    format!(": it is truncated, {file_bytes} of {whole} bytes are there: download it again")
                }
                _ => String::new(),
            };
            return Err(damaged(&format!(
                "its tensors take {tensors} bytes, but {room} follow the header{cut}"
            )));
        }
        let tensor = |name: String| {
            let info = header.info(&name).expect("the name comes from the header itself");
            let (start, end) = info.data_offsets;
            HeaderTensor {
                dtype: info.dtype,
                shape: info.shape.iter().map(|&size| size as u64).collect(),
                offset: payload + start as u64,
                bytes: (end - start) as u64,
                name,
            }
        };
        let tensors = header.offset_keys().into_iter().map(tensor).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata, payload_bytes: file_bytes })
    }

    /// The same as an index: neighbours of one type are one macroblock, without alignment or digests.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a type that has no counterpart, [`ErrorKind::Format`] for a shape that overflows.
    pub fn into_index(self) -> Result<Index> {
        let mut blocks: Vec<Macroblock> = Vec::new();
        let mut records = Vec::with_capacity(self.tensors.len());
        for tensor in self.tensors {
            let (dtype, shape) = tensor.in_torch()?;
            let elems = product(&shape).filter(|elems| elems.checked_mul(dtype.size()) == Some(tensor.bytes));
            let Some(elems) = elems else {
                return Err(damaged(&format!("the shape {shape:?} of {:?} overflows", tensor.name)));
            };
            if blocks.last().is_none_or(|block| block.dtype != dtype) {
                blocks.push(Macroblock { dtype, offset: tensor.offset, bytes: 0 });
            }
            let number = blocks.len() - 1;
            let block = &mut blocks[number];
            let offset = block.bytes / dtype.size();
            block.bytes += tensor.bytes;
            records.push(Record { name: tensor.name.into(), shape, block: number, offset, elems });
        }
        Ok(Index {
            align_bytes: 0,
            payload_bytes: self.payload_bytes,
            by_name: NameOrder::new(&records)
                .map_err(|(one, other)| duplicate(records[one].name(), one, other))?,
            blocks: blocks.into(),
            records: records.into(),
            signature: None,
            metadata: self.metadata,
            parts: Part::whole(self.payload_bytes, None),
        })
    }
}

impl HeaderTensor {
    /// Type and shape as torch has them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if torch has no such type.
    pub fn in_torch(&self) -> Result<(DType, Shape)> {
        let unsupported =
            |what: String| Error::new(ErrorKind::Unsupported, format!("Unsupported dtype: {what}"));
        let Self { name, dtype, .. } = self;
        let own =
            DType::from_safetensors(*dtype).ok_or_else(|| unsupported(format!("{dtype:?} of {name:?}")))?;
        let mut shape = self.shape.clone();
        let elems = own.safetensors_elems();
        if elems > 1 {
            match shape.last_mut() {
                Some(last) if last.is_multiple_of(elems) => *last /= elems,
                _ => {
                    let what = format!("an odd number of {dtype:?} elements in a row of {name:?}");
                    return Err(unsupported(what));
                }
            }
        }
        Ok((own, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(json: &str, payload: u64) -> Result<Index> {
        let file_bytes = (PREFIX_BYTES + json.len()) as u64 + payload;
        Header::parse(json.as_bytes(), file_bytes)?.into_index()
    }

    #[test]
    fn neighbours_of_one_type_are_one_block() {
        let json = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[],"data_offsets":[8,12]},
            "c":{"dtype":"U8","shape":[3],"data_offsets":[12,15]},
            "d":{"dtype":"F32","shape":[1],"data_offsets":[15,19]}}"#;
        let start = (PREFIX_BYTES + json.len()) as u64;
        let index = index(json, 19).unwrap();
        let blocks: Vec<_> = index
            .blocks()
            .iter()
            .map(|block| (block.dtype(), block.offset() - start, block.bytes()))
            .collect();
        assert_eq!(blocks, [(DType::Float32, 0, 12), (DType::Uint8, 12, 3), (DType::Float32, 15, 4)]);
        let ranges: Vec<_> = index.records().iter().map(|record| index.file_range(record)).collect();
        assert_eq!(
            ranges,
            [(0, 8), (8, 12), (12, 15), (15, 19)].map(|(one, other)| start + one..start + other)
        );
        assert!(index.records()[1].shape().is_empty());
        assert_eq!(index.payload_bytes(), start + 19);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let tensor = |dtype: &str, shape: &str, start: u64, end: u64| {
            format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
        };
        for (json, payload) in [
            (tensor("F32", "[2]", 0, 8), 7),
            (tensor("F32", "[2]", 0, 8), 9),
            (tensor("F32", "[3]", 0, 8), 8),
            (tensor("F32", "[2]", 4, 12), 12),
            (tensor("F32", "[9223372036854775807,9223372036854775807]", 0, 8), 8),
            (tensor("U8", "[18446744073709551615]", 0, u64::MAX), 8),
            (tensor("U8", "[9223372036854775807,0,4]", 0, 0), 0),
            ("[]".to_owned(), 0),
            ("{".to_owned(), 0),
        ] {
            let error = index(&json, payload).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format, "{json}");
            assert!(error.to_string().contains("safetensors"), "{error}");
        }
        let error = index(&tensor("F6_E2M3", "[4]", 0, 3), 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "Unsupported dtype: F6_E2M3 of \"x\"");
    }

    #[test]
    fn the_claim_is_in_the_first_bytes() {
        let mut start = 2_u64.to_le_bytes().to_vec();
        start.push(b'{');
        assert!(claims(&start, 10));
        assert!(!claims(&start, 9), "the header does not fit");
        assert!(!claims(&start[..8], 10), "there is no header");
        assert!(!claims(b"{\"metadata\"", 1000), "a JSON file");
    }
}
