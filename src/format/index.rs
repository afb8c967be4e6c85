//! The validated index of a file. Fields are private: whoever holds an [`Index`] holds the proof of its rules.

mod encoding;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    ops::Range,
    sync::Arc,
};

use super::{
    DType, Fit, Seal, Shape, Signature,
    checksum::{Algorithm, Digest},
    names::{NameOrder, closest},
    signature::SET_KEY,
};
use crate::codec::Element;
pub use encoding::{Encoding, Frame};

/// A contiguous run of elements of one type in the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macroblock {
    pub(super) dtype: DType,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Macroblock {
    /// Type of every element.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// First byte in the file.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes, padding between records included; a multiple of the element size.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length in elements.
    #[must_use]
    pub const fn elems(&self) -> u64 {
        self.bytes / self.dtype.size()
    }

    /// Where the block lies in the file.
    #[must_use]
    pub const fn file_range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }
}

/// One named tensor: a contiguous, row-major run of elements of a macroblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub(super) name: Box<str>,
    pub(super) shape: Shape,
    pub(super) block: usize,
    pub(super) offset: u64,
    pub(super) elems: u64,
}

impl Record {
    /// The tensor's name, unique in its file.
    #[must_use]
    pub const fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of the dimensions; empty for a scalar. Every size and stride fits `i64`.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Number of the macroblock that holds the elements.
    #[must_use]
    pub const fn block(&self) -> usize {
        self.block
    }

    /// First element within the block. Meaningless for a tensor without elements, which may claim any place.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of elements: the product of the shape.
    #[must_use]
    pub const fn elems(&self) -> u64 {
        self.elems
    }
}

impl AsRef<str> for Record {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// Digests of a payload's chunks and of the index itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksums {
    pub(super) algorithm: Algorithm,
    pub(super) chunk_bytes: u64,
    pub(super) digests: Box<[Digest]>,
    pub(super) footer: Digest,
}

impl Checksums {
    /// The digest function.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Bytes of payload behind each digest; the last chunk may be shorter.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// One digest per chunk, in order from the start of the payload.
    #[must_use]
    pub const fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// The digest of the index, digests of the payload included.
    #[must_use]
    pub const fn footer(&self) -> Digest {
        self.footer
    }

    pub(super) fn digests_hex(&self) -> String {
        let mut hex = String::with_capacity(self.digests.len() * self.algorithm.digits());
        for digest in &self.digests {
            write!(hex, "{digest}").expect("strings take everything");
        }
        hex
    }
}

/// Everything a file says about its tensors, checked: blocks lie in the payload without overlap, records in their
/// blocks, aligned and without partial overlap, names are unique, every product and sum fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub(super) align_bytes: u64,
    pub(super) payload_bytes: u64,
    pub(super) blocks: Box<[Macroblock]>,
    pub(super) records: Box<[Record]>,
    pub(super) by_name: NameOrder,
    pub(super) signature: Option<Signature>,
    pub(super) metadata: BTreeMap<String, String>,
    /// The payloads of the files, in order; at least one.
    pub(super) parts: Box<[Part]>,
}

/// The payload of one file: all of an index that was not joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub(super) range: Range<u64>,
    pub(super) checksums: Option<Checksums>,
    /// Shared with whoever reads the file.
    pub(super) encoding: Option<Arc<Encoding>>,
}

impl Part {
    /// A whole payload of `bytes`.
    pub(super) fn whole(bytes: u64, checksums: Option<Checksums>) -> Box<[Self]> {
        [Self { range: 0..bytes, checksums, encoding: None }].into()
    }

    /// Where the index has it.
    #[must_use]
    pub const fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// Its digests, in an algorithm and of chunks of its own; none if its file has none that this library knows.
    #[must_use]
    pub const fn checksums(&self) -> Option<&Checksums> {
        self.checksums.as_ref()
    }

    /// Bytes that its file stores it in.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.encoding.as_ref().map_or(self.range.end - self.range.start, |encoding| encoding.stored_bytes())
    }

    /// How its file stores it, if not as it is.
    #[must_use]
    pub const fn encoding(&self) -> Option<&Arc<Encoding>> {
        self.encoding.as_ref()
    }
}

impl Index {
    /// Alignment in bytes of each record's start within its block; 0 means none.
    #[must_use]
    pub const fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    /// Bytes from the file's start to the end of the last block.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// The macroblocks in the footer's order.
    #[must_use]
    pub const fn blocks(&self) -> &[Macroblock] {
        &self.blocks
    }

    /// The records in the footer's order.
    #[must_use]
    pub const fn records(&self) -> &[Record] {
        &self.records
    }

    /// Digests of a file, if the writer left any in an algorithm this library knows. Of several files each
    /// [`Part`] has its own, and all together have none.
    #[must_use]
    pub fn checksums(&self) -> Option<&Checksums> {
        match &*self.parts {
            [part] => part.checksums(),
            _ => None,
        }
    }

    /// How a file stores its payload, if not as it is. Of several files each [`Part`] has its own.
    #[must_use]
    pub fn encoding(&self) -> Option<&Encoding> {
        match &*self.parts {
            [part] => part.encoding().map(|encoding| &**encoding),
            _ => None,
        }
    }

    /// The index of a file with the same payload, stored so.
    #[must_use]
    pub fn stored(mut self, encoding: Option<Encoding>) -> Self {
        self.parts[0].encoding = encoding.map(Arc::new);
        self
    }

    /// What most of the bytes `range` are floating numbers of, if they are.
    #[must_use]
    pub fn element(&self, range: &Range<u64>) -> Option<Element> {
        let shared = |block: &&Macroblock| {
            let Range { start, end } = block.file_range();
            end.min(range.end).saturating_sub(start.max(range.start))
        };
        self.blocks.iter().max_by_key(shared).and_then(|block| block.dtype.element())
    }

    /// The names of the algorithms that the digests of its parts are by; none if no part has any.
    #[must_use]
    pub fn algorithms(&self) -> Option<String> {
        let all = self.parts.iter().filter_map(Part::checksums).map(|checksums| checksums.algorithm().name());
        let names: BTreeSet<_> = all.collect();
        (!names.is_empty()).then(|| Vec::from_iter(names).join(" and "))
    }

    /// The signature, if there is one in an algorithm this library knows. Nobody has checked it.
    #[must_use]
    pub const fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// What a signature of the file has to hold for, and the one it has.
    #[must_use]
    pub fn seal(&self) -> Seal {
        let root = match self.checksums().map(Checksums::footer) {
            Some(Digest::Blake3(root)) => Some(root),
            Some(Digest::Xxh3(_)) | None => None,
        };
        Seal { root, signature: self.signature, set: self.metadata.get(SET_KEY).cloned() }
    }

    /// The user's own strings.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Each file's payload, in the order of the files: one that was not joined begins at 0.
    #[must_use]
    pub const fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part that the byte at `offset` lies in or, in a gap between two, before; the last one for those behind it.
    ///
    /// # Panics
    /// Never: there is at least one part.
    #[must_use]
    pub fn part_at(&self, offset: u64) -> &Part {
        let part = self.parts.partition_point(|part| part.range.end <= offset);
        self.parts.get(part).or(self.parts.last()).expect("an index has a part")
    }

    /// The number of the record called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.find(name, &self.records)
    }

    /// The name of a record that `name` is most probably a misspelling of: one with few other letters.
    #[must_use]
    pub fn closest(&self, name: &str) -> Option<&str> {
        closest(name, self.records.iter().map(Record::name))
    }

    /// How `names` fit those of the records.
    #[must_use]
    pub fn fit(&self, names: &[&str]) -> Fit {
        self.by_name.fit(names, &self.records)
    }

    /// Bytes of `record` in the file; empty for a tensor without elements.
    #[must_use]
    pub fn file_range(&self, record: &Record) -> Range<u64> {
        let (range, start) = (self.range_in_block(record), self.blocks[record.block].offset);
        start + range.start..start + range.end
    }

    /// Bytes of `record` within its block, `0..0` for a tensor without elements.
    #[must_use]
    pub fn range_in_block(&self, record: &Record) -> Range<u64> {
        if record.elems == 0 {
            return 0..0;
        }
        let size = self.blocks[record.block].dtype.size();
        record.offset * size..(record.offset + record.elems) * size
    }
}
