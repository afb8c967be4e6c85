//! Reading bytes in about the order in which they lie, of far sources by several requests at once.

use std::ops::Range;

use super::{Work, bound::to_usize, run_threads};
use crate::{
    error::{Result, zeroed},
    io::Source,
};

/// Bytes that a request brings, and requests at once.
const PIECE_BYTES: usize = 8 << 20;
const REQUESTS: usize = 16;
/// The least bytes that are read at a time: what follows small tensors is often wanted next.
const LEAST_BYTES: u64 = 1 << 20;

/// Reads a source from one thread. What is near it reads as it is asked to.
#[derive(Debug)]
pub struct InOrder<'a, S> {
    source: &'a S,
    memory: Vec<u8>,
    /// The bytes of the source that are in memory.
    held: Range<u64>,
}

impl<'a, S: Source> InOrder<'a, S> {
    /// Nothing is read yet.
    pub const fn new(source: &'a S) -> Self {
        Self { source, memory: Vec::new(), held: 0..0 }
    }

    /// Fills `buffer` from `offset`; the bytes up to `end` will be wanted next.
    ///
    /// # Errors
    /// Those of [`Source::read_exact_at`].
    pub fn read_exact_at(&mut self, mut buffer: &mut [u8], mut offset: u64, end: u64) -> Result<()> {
        if !self.source.prefers_runs() {
            return self.source.read_exact_at(buffer, offset);
        }
        while !buffer.is_empty() {
            if !self.held.contains(&offset) {
                self.refill(offset, end.max(offset + buffer.len() as u64))?;
            }
            let from = to_usize(offset - self.held.start);
            let bytes = buffer.len().min(to_usize(self.held.end - offset));
            let (now, rest) = buffer.split_at_mut(bytes);
            now.copy_from_slice(&self.memory[from..from + bytes]);
            buffer = rest;
            offset += bytes as u64;
        }
        Ok(())
    }

    /// Reads what follows `offset`, if possible up to `end`.
    fn refill(&mut self, offset: u64, end: u64) -> Result<()> {
        let room = (PIECE_BYTES * REQUESTS) as u64;
        let last = self.source.len().max(offset + 1); // or the source says that it ends before
        let end = end.max(offset + LEAST_BYTES).min(offset + room).min(last);
        let bytes = to_usize(end - offset);
        self.held = 0..0;
        if self.memory.len() < bytes {
            self.memory = zeroed(bytes as u64)?;
        }
        let pieces =
            Work::new(self.memory[..bytes].chunks_mut(PIECE_BYTES).zip((offset..).step_by(PIECE_BYTES)));
        run_threads(bytes.div_ceil(PIECE_BYTES), || {
            while let Some((piece, at)) = pieces.next() {
                pieces.stop_on_error(self.source.read_exact_at(piece, at))?;
            }
            Ok(())
        })?;
        self.held = offset..end;
        Ok(())
    }
}
