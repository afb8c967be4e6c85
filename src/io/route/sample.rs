//! Timed samples: whether a file comes at the speed of memory, whatever the kernel says of its page cache.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Instant,
};

use crate::{
    io::{FileSource, Source},
    sync::{Mutex, Unpoisoned as _},
};

/// Pieces of a sample, each of which is timed, and their bytes.
const PIECES: u64 = 8;
const PIECE_BYTES: usize = 512 << 10;
const SAMPLE_BYTES: u64 = PIECES * PIECE_BYTES as u64;
/// A piece this fast came from memory: 4 GB/s is more than one thread gets from any disk.
const CACHED_BYTES_PER_NANOSECOND: u128 = 4;

/// The samples of a load, one of each device that its files lie on.
#[derive(Debug, Default)]
pub struct Samples(Mutex<HashMap<u64, bool>>);

impl Samples {
    /// Whether `file`, or one before it of the same device, comes at the speed of memory.
    pub(super) fn is_fast(&self, file: &FileSource) -> bool {
        let mut taken = self.0.lock().unpoisoned();
        *taken.entry(file.device()).or_insert_with(|| is_fast(file))
    }
}

/// Whether most pieces of a part of the file, at a place left to chance, arrive at the speed of memory; it reads no more of
/// them than it takes to know.
fn is_fast(file: &FileSource) -> bool {
    let first = RandomState::new().hash_one(0) % file.len().saturating_sub(SAMPLE_BYTES).max(1);
    let mut buffer = vec![1; PIECE_BYTES]; // not zeros, which would cost time at their first use
    let (mut fast, mut slow) = (0, 0);
    for offset in (first..first + SAMPLE_BYTES).step_by(PIECE_BYTES) {
        let started = Instant::now();
        let Ok(bytes @ 1..) = file.read_at(&mut buffer, offset) else {
            break;
        };
        if bytes as u128 > started.elapsed().as_nanos() * CACHED_BYTES_PER_NANOSECOND {
            fast += 1;
        } else {
            slow += 1;
        }
        if 2 * fast > PIECES || 2 * slow >= PIECES {
            break;
        }
    }
    fast > slow
}
