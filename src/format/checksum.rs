//! Digests of the payload's chunks and of the index.

use std::{hash::Hasher as _, mem};

use twox_hash::XxHash3_64;

use super::{Index, Macroblock};

/// A 64-bit digest.
pub type Digest = u64;

/// The digest function this library writes: XXH3, 64 bits, no seed.
pub const ALGORITHM: &str = "xxh3_64";
/// Payload bytes behind one digest in files this library writes: fits a core's cache beside its source and costs
/// 16 footer characters per MiB.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Smallest chunk a reader accepts: below a page the digests would outweigh what they protect.
pub const MIN_CHUNK_BYTES: u64 = 4096;

/// The digest of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    XxHash3_64::oneshot(bytes)
}

/// Digests bytes that come in pieces.
pub struct Hasher(XxHash3_64);

impl Hasher {
    /// Starts without any bytes.
    #[must_use]
    pub fn new() -> Self {
        Self(XxHash3_64::new())
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(&self) -> Digest {
        self.0.finish()
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Digests a stream of payload bytes chunk by chunk.
pub struct Chunker {
    chunk_bytes: u64,
    left: u64,
    hasher: Hasher,
    digests: Vec<Digest>,
}

impl Chunker {
    /// Starts at payload offset 0 with chunks of `chunk_bytes`.
    ///
    /// # Panics
    /// If `chunk_bytes` is 0.
    #[must_use]
    pub fn new(chunk_bytes: u64) -> Self {
        assert!(chunk_bytes > 0, "a chunk holds at least one byte");
        Self { chunk_bytes, left: chunk_bytes, hasher: Hasher::new(), digests: Vec::new() }
    }

    /// Takes the payload's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let (now, rest) = bytes.split_at(take);
            self.hasher.update(now);
            self.left -= take as u64;
            bytes = rest;
            if self.left == 0 {
                self.end_chunk();
            }
        }
    }

    /// The digests of all bytes taken, the last chunk's included.
    #[must_use]
    pub fn finish(mut self) -> Vec<Digest> {
        if self.left < self.chunk_bytes {
            self.end_chunk();
        }
        self.digests
    }

    fn end_chunk(&mut self) {
        self.digests.push(mem::take(&mut self.hasher).finish());
        self.left = self.chunk_bytes;
    }
}

/// The digest of everything in `index` that decides where bytes go and what they mean, digests of the payload
/// included: lengths and numbers as little-endian `u64`, strings as length and UTF-8.
#[must_use]
pub fn index_digest(index: &Index, chunk_bytes: u64, digests: &[Digest]) -> Digest {
    let mut canonical = Canonical(Vec::new());
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
    canonical.text(ALGORITHM);
    canonical.number(chunk_bytes);
    canonical.numbers(digests);
    digest(&canonical.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_xxh3() {
        // Test vectors of the xxHash specification's reference implementation, seed 0.
        for (bytes, expected) in [(&b""[..], 0x2d06_8005_38d3_94c2), (b"abc", 0x78af_5f94_892f_3950)] {
            assert_eq!(digest(bytes), expected);
        }
    }

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_arrive() {
        let payload: Vec<u8> = (0..10_001_u32).map(|i| (i % 251) as u8).collect();
        let expected: Vec<Digest> = payload.chunks(4096).map(digest).collect();
        for step in [1, 7, 4095, 4096, 4097, 20_000] {
            let mut chunker = Chunker::new(4096);
            payload.chunks(step).for_each(|piece| chunker.update(piece));
            assert_eq!(chunker.finish(), expected, "fed {step} bytes at a time");
        }
        assert!(Chunker::new(4096).finish().is_empty());
    }
}
