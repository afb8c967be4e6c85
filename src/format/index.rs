//! The validated index of a file. Fields are private: whoever holds an [`Index`] holds the proof of its rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    ops::Range,
};

use super::{
    DType, Seal, Shape, Signature,
    checksum::{Algorithm, Digest, xxh3},
    join::SET_KEY,
};

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
}

impl Part {
    /// A whole payload of `bytes`.
    pub(super) fn whole(bytes: u64, checksums: Option<Checksums>) -> Box<[Self]> {
        [Self { range: 0..bytes, checksums }].into()
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

/// How some names and those of an index's records fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// The number of each record whose name is among the names, and its place there, in the order of the file.
    pub pairs: Vec<(usize, usize)>,
    /// The numbers of the other records.
    pub unnamed: Vec<usize>,
    /// The places of the other names; of a name that is there twice, the second.
    pub unknown: Vec<usize>,
}

/// The numbers of records in the order of their names' digests, then of the names: integers sort and are searched
/// several times faster than strings, and names made to have equal digests cost no more than the strings would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameOrder(Box<[(u64, usize)]>);

impl NameOrder {
    /// Orders `records`, or finds two, the earlier first, with the same name.
    pub(super) fn new(records: &[Record]) -> Result<Self, (usize, usize)> {
        let order = ordered(records.len(), |number| &records[number].name);
        let same = |(one, other): &(&(u64, usize), &(u64, usize))| {
            one.0 == other.0 && records[one.1].name == records[other.1].name
        };
        match order.iter().zip(order.iter().skip(1)).find(same) {
            Some((one, other)) => Err((one.1, other.1)),
            None => Ok(Self(order)),
        }
    }

    /// As [`Index::fit`]: both lists of names are in one order, so one walk finds what they have in common.
    fn fit(&self, names: &[&str], records: &[Record]) -> Fit {
        let mut places = vec![None; records.len()];
        let mut unknown = Vec::new();
        let mut own = self.0.iter().peekable();
        for &(digest, place) in &ordered(names.len(), |place| names[place]) {
            let order = |&&(other, number): &&(u64, usize)| {
                other.cmp(&digest).then_with(|| (*records[number].name).cmp(names[place]))
            };
            while own.next_if(|record| order(record).is_lt()).is_some() {}
            match own.next_if(|record| order(record).is_eq()) {
                Some(&(_, number)) => places[number] = Some(place),
                None => unknown.push(place),
            }
        }
        unknown.sort_unstable();
        let unnamed = (0..records.len()).filter(|&number| places[number].is_none()).collect();
        let pairs = places.into_iter().enumerate().filter_map(|(number, place)| Some((number, place?)));
        Fit { pairs: pairs.collect(), unnamed, unknown }
    }

    fn find(&self, name: &str, records: &[Record]) -> Option<usize> {
        let wanted = xxh3(name.as_bytes());
        let found = self.0.binary_search_by(|&(digest, number)| {
            digest.cmp(&wanted).then_with(|| (*records[number].name).cmp(name))
        });
        found.ok().map(|position| self.0[position].1)
    }
}

/// The numbers up to `count` in the order of the digests of their names, then of the names, then their own.
fn ordered<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Box<[(u64, usize)]> {
    let mut order: Box<[_]> = (0..count).map(|number| (xxh3(name(number).as_bytes()), number)).collect();
    order.sort_unstable_by(|one, other| {
        let by_name = || name(one.1).cmp(name(other.1));
        one.0.cmp(&other.0).then_with(by_name).then(one.1.cmp(&other.1))
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::layout::{Layout, Order, TensorSpec};

    fn index(names: &[&str]) -> Index {
        let spec = |name: &&str| TensorSpec {
            name: (*name).to_owned(),
            dtype: DType::Uint8,
            shape: vec![1],
            tied_to: None,
        };
        let specs: Vec<_> = names.iter().map(spec).collect();
        Layout::new(&specs, Order::Given, 0, BTreeMap::new())
            .unwrap()
            .into_index(Algorithm::Xxh3, vec![Digest::Xxh3(0)])
    }

    #[test]
    fn names_in_any_order_find_their_records() {
        let names: Vec<String> = (0..300).map(|number| format!("layers.{number}.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let index = index(&names);
        for step in [1, 7, 299] {
            let given: Vec<&str> = (0..300).map(|place| names[place * step % 300]).collect();
            let fit = index.fit(&given);
            let found: Vec<_> = fit.pairs.iter().map(|&(number, place)| (number, given[place])).collect();
            assert_eq!(found, names.iter().copied().enumerate().collect::<Vec<_>>());
            assert_eq!((fit.unnamed, fit.unknown), (vec![], vec![]));
        }
        let mut given = names.clone();
        let mut misfits = |place: usize, name| {
            given[place] = name;
            let fit = index.fit(&given);
            assert!(fit.pairs.iter().all(|&(number, place)| names[number] == given[place]));
            assert_eq!(fit.pairs.len() + fit.unknown.len(), given.len());
            assert_eq!(fit.pairs.len() + fit.unnamed.len(), names.len());
            (fit.unnamed, fit.unknown)
        };
        assert_eq!(misfits(5, "another"), (vec![5], vec![5]));
        let (unnamed, unknown) = misfits(5, names[6]);
        assert_eq!((unnamed, unknown.len()), (vec![5], 1), "one name twice");
        assert_eq!(index.fit(&names[1..]).unnamed, [0]);
        assert_eq!(index.fit(&[&names[..], &["another"]].concat()).unknown, [300]);
        assert_eq!(index.fit(&[]).unnamed.len(), 300);
    }
}
