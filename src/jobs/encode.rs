//! Encoding a payload on its way to a file.

use crate::{
    codec::{Codec, Level},
    environment::Environment,
    error::Result,
    format::{Encoding, Index, checksum::CHUNK_BYTES},
    io::{read::in_parallel, write::Growing},
};

/// Chunks for each thread that are encoded together: enough that starting threads does not count.
const CHUNKS_A_THREAD: usize = 8;
/// More than this encode faster than files are written. Their chunks and frames take some 256 MiB.
const MAX_THREADS: usize = 16;
/// Bytes of a chunk: those of a digest, so that what is verified is decoded once.
const FRAME_CHUNK_BYTES: usize = 1 << 20;
const _: () = assert!(FRAME_CHUNK_BYTES as u64 == CHUNK_BYTES);

/// Takes a payload and writes its frames.
pub(super) struct Encoder {
    level: Level,
    threads: usize,
    /// Bytes that are not encoded yet.
    waiting: Vec<u8>,
    /// Where in the payload they begin.
    position: u64,
    frames: Vec<(Codec, u64)>,
}

impl Encoder {
    /// Starts a payload.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a malformed environment variable.
    pub(super) fn new(level: Level) -> Result<Self> {
        let threads = Environment::read()?.read_threads.get().min(MAX_THREADS);
        Ok(Self { level, threads, waiting: Vec::new(), position: 0, frames: Vec::new() })
    }

    /// Takes the next `bytes` of the payload of `index`.
    ///
    /// # Errors
    /// Those of [`Growing::write`].
    pub(super) fn write(&mut self, mut bytes: &[u8], index: &Index, file: &mut Growing) -> Result<()> {
        let most = self.threads * CHUNKS_A_THREAD * FRAME_CHUNK_BYTES;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(most - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            bytes = later;
            if self.waiting.len() == most {
                self.flush(index, file)?;
            }
        }
        Ok(())
    }

    /// Writes what is left of the payload of `index`, and tells how all of it is stored.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(super) fn finish(mut self, index: &Index, file: &mut Growing) -> Result<Encoding> {
        self.flush(index, file)?;
        Encoding::new(CHUNK_BYTES, index.payload_bytes(), self.frames.into_iter())
    }

    fn flush(&mut self, index: &Index, file: &mut Growing) -> Result<()> {
        let chunks: Vec<_> = (self.position..)
            .step_by(FRAME_CHUNK_BYTES)
            .zip(self.waiting.chunks(FRAME_CHUNK_BYTES))
            .collect();
        let encode = |&(from, chunk): &(u64, &[u8])| {
            let element = index.element(&(from..from + chunk.len() as u64));
            self.level.encode(element, chunk)
        };
        for (codec, frame) in in_parallel(&chunks, self.threads, encode)? {
            file.write(&frame)?;
            self.frames.push((codec, frame.len() as u64));
        }
        self.position += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}
