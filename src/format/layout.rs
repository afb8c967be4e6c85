//! Where each tensor of a new file goes: a pure function from descriptions to an [`Index`].

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    BLOCK_ALIGN_BYTES, Checksums, DType, Index, Macroblock, Record, checksum,
    checksum::{Algorithm, Digest},
    footer::index_digest,
    index::Part,
    names::NameOrder,
    shape::product,
};
use crate::error::{Error, Result};

/// What the writer knows about a tensor before it sees its bytes.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// Unique name.
    pub name: String,
    /// Type of the elements as they will be stored.
    pub dtype: DType,
    /// Sizes of the dimensions; empty for a scalar.
    pub shape: Vec<u64>,
    /// The number of an earlier tensor with the same elements in the same memory, which is then stored once.
    pub tied_to: Option<usize>,
}

/// The order of tensors in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Most elements first, equal sizes in the given order: flashpack 0.4.5's default.
    LargestFirst,
    /// As given.
    Given,
}

/// An index without digests, and the tensors whose bytes the payload needs.
#[derive(Debug)]
pub struct Layout {
    index: Index,
    writes: Vec<Write>,
}

/// One tensor's place in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Number of the tensor in the list that was laid out.
    pub tensor: usize,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes, above 0.
    pub bytes: u64,
}

impl Layout {
    /// Lays out `tensors` with records aligned to `align_bytes` (0: dense) and blocks to [`BLOCK_ALIGN_BYTES`].
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): no tensors, a name twice, a tie between tensors of
    /// different type or size, or sizes that overflow.
    pub fn new(
        tensors: &[TensorSpec],
        order: Order,
        align_bytes: u64,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        if tensors.is_empty() {
            return Err(Error::argument("No tensors to pack"));
        }
        let elems = tensors.iter().map(elems_of).collect::<Result<Vec<u64>>>()?;
        let mut sequence: Vec<usize> = (0..tensors.len()).collect();
        if order == Order::LargestFirst {
            sequence.sort_by_key(|&tensor| Reverse(elems[tensor]));
        }
        let mut blocks: Vec<GrowingBlock> = Vec::new();
        let mut places: Vec<Option<(usize, u64)>> = vec![None; tensors.len()];
        for &tensor in &sequence {
            let dtype = tensors[tensor].dtype;
            let root = root_of(tensors, tensor)?;
            let block = blocks.iter().position(|block| block.dtype == dtype).unwrap_or_else(|| {
                blocks.push(GrowingBlock { dtype, elems: 0, writes: Vec::new() });
                blocks.len() - 1
            });
            // The first of a tied group in file order takes the place; the others find it there.
            if places[root].is_none() {
                places[root] = Some((block, blocks[block].push(root, elems[root], align_bytes)?));
            }
            places[tensor] = places[root];
        }
        // The index follows the file, as 0.4.5's does: block by block.
        sequence.sort_by_key(|&tensor| places[tensor].map(|(block, _)| block));
        Self::place(tensors, &sequence, &elems, &blocks, &places, align_bytes, metadata)
    }

    fn place(
        tensors: &[TensorSpec],
        sequence: &[usize],
        elems: &[u64],
        growing: &[GrowingBlock],
        places: &[Option<(usize, u64)>],
        align_bytes: u64,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let too_large = || Error::argument("the tensors together exceed 2^63 bytes");
        let (mut blocks, mut writes, mut end) = (Vec::with_capacity(growing.len()), Vec::new(), 0_u64);
        for block in growing {
            let offset = end.checked_next_multiple_of(BLOCK_ALIGN_BYTES).ok_or_else(too_large)?;
            let bytes = block.elems * block.dtype.size();
            end =
                offset.checked_add(bytes).filter(|&end| i64::try_from(end).is_ok()).ok_or_else(too_large)?;
            writes.extend(block.writes.iter().map(|write| Write { offset: offset + write.offset, ..*write }));
            blocks.push(Macroblock { dtype: block.dtype, offset, bytes });
        }
        let record = |&tensor: &usize| {
            let (block, offset) = places[tensor].expect("every tensor of the sequence was placed");
            let TensorSpec { name, shape, .. } = &tensors[tensor];
            let (name, shape) = (name.as_str().into(), shape.as_slice().into());
            Record { name, shape, block, offset, elems: elems[tensor] }
        };
        let records: Box<[Record]> = sequence.iter().map(record).collect();
        let by_name = NameOrder::new(&records)
            .map_err(|(one, _)| Error::argument(format!("duplicate name {:?}", records[one].name)))?;
        let index = Index {
            align_bytes,
            payload_bytes: end,
            blocks: blocks.into(),
            records,
            by_name,
            signature: None,
            metadata,
            parts: Part::whole(end, None),
        };
        Ok(Self { index, writes })
    }

    /// What must be written where, in file order. Gaps between the pieces are zeros.
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Bytes of the payload.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        self.index.payload_bytes
    }

    /// The index, which has no digests yet.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The finished index, given the digests by `algorithm` of the payload's chunks of [`checksum::CHUNK_BYTES`].
    #[must_use]
    pub fn into_index(mut self, algorithm: Algorithm, digests: Vec<Digest>) -> Index {
        let footer = index_digest(&self.index, algorithm, checksum::CHUNK_BYTES, &digests);
        self.index.parts[0].checksums = Some(Checksums {
            algorithm,
            chunk_bytes: checksum::CHUNK_BYTES,
            digests: digests.into(),
            footer,
        });
        self.index
    }
}

struct GrowingBlock {
    dtype: DType,
    elems: u64,
    /// Offsets here count from the block's start.
    writes: Vec<Write>,
}

impl GrowingBlock {
    /// Appends `elems` elements of `tensor`; returns the element they start at.
    fn push(&mut self, tensor: usize, elems: u64, align_bytes: u64) -> Result<u64> {
        let size = self.dtype.size();
        let start = self.elems.checked_next_multiple_of(self.dtype.align_elems(align_bytes));
        let end = start.and_then(|start| start.checked_add(elems));
        let (Some(start), Some(end)) = (start, end.filter(|end| end.checked_mul(size).is_some())) else {
            return Err(Error::argument("the tensors together exceed 2^63 bytes"));
        };
        self.elems = end;
        if elems > 0 {
            self.writes.push(Write { tensor, offset: start * size, bytes: elems * size });
        }
        Ok(start)
    }
}

fn elems_of(tensor: &TensorSpec) -> Result<u64> {
    product(&tensor.shape).ok_or_else(|| {
        Error::argument(format!("the shape {:?} of {:?} overflows", tensor.shape, tensor.name))
    })
}

/// The first tensor of the tied group that `tensor` belongs to.
fn root_of(tensors: &[TensorSpec], tensor: usize) -> Result<usize> {
    let spec = &tensors[tensor];
    match spec.tied_to {
        None => Ok(tensor),
        Some(root) if root < tensor && tensors[root].tied_to.is_none() => {
            let same =
                tensors[root].dtype == spec.dtype && product(&tensors[root].shape) == product(&spec.shape);
            same.then_some(root).ok_or_else(|| {
                Error::argument(format!(
                    "{:?} is tied to {:?} of another type or size",
                    spec.name, tensors[root].name
                ))
            })
        }
        Some(root) => Err(Error::argument(format!(
            "{:?} is tied to tensor {root}, which is no earlier root",
            spec.name
        ))),
    }
}
