//! Short measurements: how fast this machine reads a file, computes digests, copies memory, right now.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    error::Result,
    format::checksum::{Algorithm, Hasher},
    io::{
        HostBuffer, Source,
        read::{Work, run_threads},
    },
};

/// Most bytes of a file that a sample reads.
const SAMPLE_BYTES: usize = 64 << 20;
/// Bytes read by one request.
const PIECE_BYTES: usize = 2 << 20;
/// No more requests are sent to a source that has taken this long.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes that each thread copies, and its source and target: more than caches hold.
const COPY_BYTES: usize = 16 << 20;
/// Bytes that each thread computes digests of, over and over, as loads do: they stay in its cache.
const HASH_BYTES: usize = 256 << 10;
const HASH_ROUNDS: usize = 64;

/// Bytes that passed, and the time they took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bytes, of all threads.
    pub bytes: u64,
    /// By the clock on the wall.
    pub time: Duration,
}

#[allow(clippy::cast_precision_loss, reason = "rates need no 53 bits")]
impl Rate {
    fn since(began: Instant, bytes: u64) -> Self {
        Self { bytes, time: began.elapsed().max(Duration::from_nanos(1)) }
    }

    /// Bytes per second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }

    /// Seconds that `bytes` take at this rate.
    #[must_use]
    pub fn seconds(self, bytes: u64) -> f64 {
        bytes as f64 / self.per_second()
    }
}

/// Reads pieces spread over the first `payload_bytes` of `source`, with `threads` threads, into new memory or, if it is
/// `reused`, into the same again and again.
///
/// # Errors
/// Those of the source; [`ErrorKind::Memory`](crate::ErrorKind::Memory).
pub fn reading<S: Source>(source: &S, payload_bytes: u64, threads: usize, reused: bool) -> Result<Rate> {
    let piece = PIECE_BYTES as u64;
    let pieces = (SAMPLE_BYTES as u64 / piece).min(payload_bytes.div_ceil(piece));
    let stride = payload_bytes.checked_div(pieces).unwrap_or(0) / piece * piece;
    let work = Work::new((0..pieces).map(|number| number * stride.max(piece)));
    let began = Instant::now();
    let total = AtomicU64::new(0);
    run_threads(threads, || {
        // Pages take memory only once they are read into.
        let mut memory = HostBuffer::new(if reused { PIECE_BYTES } else { SAMPLE_BYTES })?;
        let mut places = memory.as_mut_slice().chunks_mut(PIECE_BYTES);
        let mut place = places.next().expect("there is room for a piece");
        while let Some(offset) = work.next().filter(|_| began.elapsed() < PATIENCE) {
            let bytes = piece.min(payload_bytes - offset);
            let length = usize::try_from(bytes).expect("a piece fits in memory");
            source.read_exact_at(&mut place[..length], offset)?;
            total.fetch_add(bytes, Ordering::Relaxed);
            if let Some(next) = places.next() {
                place = next;
            }
        }
        Ok(())
    })?;
    Ok(Rate::since(began, total.into_inner()))
}

/// Reads the first `bytes` of `source` with `threads` threads, into new memory or, if it is `reused`, each thread into
/// the same again and again.
///
/// # Errors
/// Those of the source; [`ErrorKind::Memory`](crate::ErrorKind::Memory).
pub fn reading_all<S: Source>(source: &S, bytes: usize, threads: usize, reused: bool) -> Result<Rate> {
    if !reused {
        let mut memory = HostBuffer::new(bytes)?;
        let began = Instant::now();
        read_pieces(source, &Work::new(memory.as_mut_slice().chunks_mut(PIECE_BYTES).enumerate()), threads)?;
        return Ok(Rate::since(began, bytes as u64));
    }
    let mut memory = (0..threads).map(|_| HostBuffer::new(PIECE_BYTES)).collect::<Result<Vec<_>>>()?;
    for buffer in &mut memory {
        buffer.as_mut_slice().fill(1);
    }
    let (buffers, offsets) = (Work::new(memory.iter_mut()), Work::new((0..bytes).step_by(PIECE_BYTES)));
    let began = Instant::now();
    run_threads(threads, || {
        let buffer = buffers.next().expect("there is one for each thread").as_mut_slice();
        while let Some(offset) = offsets.next() {
            source.read_exact_at(&mut buffer[..PIECE_BYTES.min(bytes - offset)], offset as u64)?;
        }
        Ok(())
    })?;
    Ok(Rate::since(began, bytes as u64))
}

/// Fills pieces of memory, each with its number among those of the source.
fn read_pieces<'m, S: Source>(
    source: &S,
    pieces: &Work<impl Iterator<Item = (usize, &'m mut [u8])> + Send>,
    threads: usize,
) -> Result<()> {
    run_threads(threads, || {
        while let Some((number, piece)) = pieces.next() {
            source.read_exact_at(piece, (number * PIECE_BYTES) as u64)?;
        }
        Ok(())
    })
}

/// Computes digests by `algorithm` with `threads` threads.
///
/// # Errors
/// If a thread fails.
pub fn hashing(algorithm: Algorithm, threads: usize) -> Result<Rate> {
    let began = Instant::now();
    run_threads(threads, || {
        let bytes = vec![7_u8; HASH_BYTES];
        let mut hasher = Hasher::new(algorithm);
        (0..HASH_ROUNDS).for_each(|_| hasher.update(&bytes));
        black_box(hasher.finish());
        Ok(())
    })?;
    Ok(Rate::since(began, (threads * HASH_BYTES * HASH_ROUNDS) as u64))
}

/// Copies memory that is there already with `threads` threads.
///
/// # Errors
/// If a thread fails.
pub fn copying(threads: usize) -> Result<Rate> {
    let mut memory: Vec<_> = (0..threads).map(|_| (vec![1_u8; COPY_BYTES], vec![2_u8; COPY_BYTES])).collect();
    let began = Instant::now();
    let work = Work::new(memory.iter_mut());
    run_threads(threads, || {
        while let Some((from, to)) = work.next() {
            to.copy_from_slice(from);
            black_box(&to);
        }
        Ok(())
    })?;
    Ok(Rate::since(began, (threads * COPY_BYTES) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemorySource;

    #[test]
    fn all_of_a_source_is_read_or_its_end_is_an_error() {
        let bytes: Vec<u8> = (0..=250).cycle().take(5 * PIECE_BYTES / 2).collect();
        let source = MemorySource::new(bytes.clone());
        let mut memory = vec![0; bytes.len()];
        read_pieces(&source, &Work::new(memory.chunks_mut(PIECE_BYTES).enumerate()), 2).unwrap();
        assert!(memory == bytes, "the pieces are where they were in the source");
        for reused in [false, true] {
            let rate = reading_all(&source, bytes.len(), 2, reused).unwrap();
            assert_eq!(rate.bytes, bytes.len() as u64);
            let error = reading_all(&source, bytes.len() + 1, 2, reused).unwrap_err();
            assert!(error.to_string().contains("truncated while it was read"), "{error}");
        }
    }
}
