//! The digest of an index.

use crate::format::{
    Index, Macroblock, Record,
    checksum::{Algorithm, Digest},
};

/// The digest of everything in `index` that decides where bytes go and what they mean, digests of the payload
/// included: lengths and numbers as little-endian `u64`, strings as length and UTF-8. By BLAKE3 this is a cryptographic
/// root of the file.
#[must_use]
pub fn index_digest(index: &Index, algorithm: Algorithm, chunk_bytes: u64, digests: &[Digest]) -> Digest {
    let bytes = |record: &Record| record.name().len() + 8 * (5 + record.shape().len());
    let mut canonical = Canonical(Vec::with_capacity(index.records().iter().map(bytes).sum()));
    canonical.text("flashpack index 1");
    canonical.number(index.align_bytes());
    canonical.number(index.payload_bytes());
    canonical.number(index.blocks().len() as u64);
    for block in index.blocks() {
        canonical.block(block);
    }
    canonical.number(index.records().len() as u64);
    for record in index.records() {
        canonical.text(record.name());
        canonical.number(record.block() as u64);
        canonical.number(record.offset());
        canonical.number(record.elems());
        canonical.numbers(record.shape());
    }
    canonical.number(index.metadata().len() as u64);
    for (key, value) in index.metadata() {
        canonical.text(key);
        canonical.text(value);
    }
    canonical.text(algorithm.name());
    canonical.number(chunk_bytes);
    canonical.number(digests.len() as u64);
    for digest in digests {
        canonical.digest(digest);
    }
    algorithm.digest(&canonical.0)
}

/// The bytes behind an index's digest: about as many as the footer's own, and digested at once, as a hasher fed number
/// by number takes ten times as long.
struct Canonical(Vec<u8>);

impl Canonical {
    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn numbers(&mut self, values: &[u64]) {
        self.number(values.len() as u64);
        for &value in values {
            self.number(value);
        }
    }

    fn digest(&mut self, digest: &Digest) {
        match digest {
            Digest::Xxh3(digest) => self.number(*digest),
            Digest::Blake3(digest) => self.0.extend_from_slice(digest),
        }
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn block(&mut self, block: &Macroblock) {
        self.text(block.dtype().name());
        self.number(block.offset());
        self.number(block.bytes());
    }
}
