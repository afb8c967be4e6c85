//! Digests of the payload's chunks.

use std::{fmt, hash::Hasher as _};

use twox_hash::XxHash3_64;

use crate::error::{Error, Result};

/// Payload bytes behind one digest in files this library writes: fits a core's cache beside its source and costs
/// 16 footer characters per MiB (64 with BLAKE3).
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Smallest chunk a reader accepts: below a page the digests would outweigh what they protect.
pub const MIN_CHUNK_BYTES: u64 = 4096;
/// Largest chunk a reader accepts: on its way to a device a chunk passes whole through one staging buffer.
pub const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// Refuses chunks of the footer's entry `of` that no reader accepts.
pub(super) fn check_chunk_bytes(of: &str, bytes: u64) -> Result<()> {
    if (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) && bytes.is_power_of_two() {
        return Ok(());
    }
    Err(Error::format(format!(
        "{of}.chunk_bytes is {bytes}, not a power of two from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}"
    )))
}

/// A digest function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// XXH3, 64 bits, no seed: finds accidents.
    #[default]
    Xxh3,
    /// BLAKE3, 256 bits: finds forgeries, too, for whoever knows the digest of the index from elsewhere.
    Blake3,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Xxh3, Self::Blake3];

    /// What it is called in a footer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xxh3 => "xxh3_64",
            Self::Blake3 => "blake3",
        }
    }

    /// The algorithm of that name, if this library knows it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The algorithm that a caller names, or the default.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that is none.
    pub fn asked(name: Option<&str>) -> Result<Self> {
        name.map_or(Ok(Self::default()), |name| {
            Self::from_name(name).ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(" or ");
                Error::argument(format!("unknown checksum {name:?}: expected {known}"))
            })
        })
    }

    /// Hexadecimal digits of a digest.
    #[must_use]
    pub const fn digits(self) -> usize {
        match self {
            Self::Xxh3 => 16,
            Self::Blake3 => 64,
        }
    }

    /// The digest that `digits` spell.
    #[must_use]
    pub fn parse(self, digits: &str) -> Option<Digest> {
        match self {
            _ if digits.len() != self.digits() || digits.starts_with('+') => None,
            Self::Xxh3 => u64::from_str_radix(digits, 16).ok().map(Digest::Xxh3),
            Self::Blake3 => blake3::Hash::from_hex(digits).ok().map(|hash| Digest::Blake3(*hash.as_bytes())),
        }
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> Digest {
        match self {
            Self::Xxh3 => Digest::Xxh3(xxh3(bytes)),
            Self::Blake3 => Digest::Blake3(*blake3::hash(bytes).as_bytes()),
        }
    }
}

/// The XXH3 of `bytes`, for tables that stay in memory.
pub(super) fn xxh3(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// A digest; shown in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Of [`Algorithm::Xxh3`].
    Xxh3(u64),
    /// Of [`Algorithm::Blake3`].
    Blake3([u8; 32]),
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xxh3(digest) => write!(f, "{digest:016x}"),
            Self::Blake3(digest) => digest.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Digests bytes that come in pieces.
pub enum Hasher {
    /// By [`Algorithm::Xxh3`].
    Xxh3(Box<XxHash3_64>),
    /// By [`Algorithm::Blake3`].
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Starts without any bytes.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Xxh3 => Self::Xxh3(Box::new(XxHash3_64::new())),
            Algorithm::Blake3 => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Xxh3(hasher) => hasher.write(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(&self) -> Digest {
        match self {
            Self::Xxh3(hasher) => Digest::Xxh3(hasher.finish()),
            Self::Blake3(hasher) => Digest::Blake3(*hasher.finalize().as_bytes()),
        }
    }
}

/// Digests a stream of payload bytes chunk by chunk.
pub struct Chunker {
    algorithm: Algorithm,
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
    pub fn new(algorithm: Algorithm, chunk_bytes: u64) -> Self {
        assert!(chunk_bytes > 0, "a chunk holds at least one byte");
        let hasher = Hasher::new(algorithm);
        Self { algorithm, chunk_bytes, left: chunk_bytes, hasher, digests: Vec::new() }
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

    /// The function that makes the digests.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
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
        self.digests.push(self.hasher.finish());
        self.hasher = Hasher::new(self.algorithm);
        self.left = self.chunk_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_reference_implementations() {
        // Test vectors of the xxHash specification's reference implementation, seed 0, and of BLAKE3's test_vectors.json.
        for (algorithm, bytes, expected) in [
            (Algorithm::Xxh3, &b""[..], "2d06800538d394c2"),
            (Algorithm::Xxh3, b"abc", "78af5f94892f3950"),
            (Algorithm::Blake3, b"", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (Algorithm::Blake3, b"\0", "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        ] {
            let digest = algorithm.digest(bytes);
            assert_eq!(digest.to_string(), expected);
            assert_eq!(algorithm.parse(expected), Some(digest));
        }
    }

    #[test]
    fn what_is_no_digest_is_none() {
        for algorithm in Algorithm::ALL {
            let digits = "0".repeat(algorithm.digits());
            assert!(algorithm.parse(&digits).is_some());
            for wrong in ["+", "g", "\u{e9}"] {
                let wrong = format!("{wrong}{}", &digits[wrong.len()..]);
                assert_eq!(algorithm.parse(&wrong), None, "{wrong}");
            }
            assert_eq!(algorithm.parse(&digits[1..]), None);
        }
    }

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_arrive() {
        let payload: Vec<u8> = (0..10_001_u32).map(|i| (i % 251) as u8).collect();
        for algorithm in Algorithm::ALL {
            let expected: Vec<Digest> = payload.chunks(4096).map(|chunk| algorithm.digest(chunk)).collect();
            for step in [1, 7, 4095, 4096, 4097, 20_000] {
                let mut chunker = Chunker::new(algorithm, 4096);
                payload.chunks(step).for_each(|piece| chunker.update(piece));
                assert_eq!(chunker.finish(), expected, "fed {step} bytes at a time");
            }
            assert!(Chunker::new(algorithm, 4096).finish().is_empty());
        }
    }
}
