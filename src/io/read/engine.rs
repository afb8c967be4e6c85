//! The read engine: carries out the chunks of a plan.

use std::{mem, ops::Range};

use super::{
    bound::{Bound, Run, bind, span, to_usize},
    digests::Digests,
    threads::{Work, run_readers},
};
use crate::{
    error::{Error, ErrorKind, Result, zeroed},
    format::Index,
    io::{HostBuffer, Source},
    plan::{Chunk, DIRECT_ALIGN_BYTES, Readers, Rows},
    progress::Progress,
    stats::{Clock, Lap, Stage},
};

/// Bytes read at a time through the page cache when a digest wants them or they are copied elsewhere: few enough to be in
/// the core's cache when it looks (of 256 KiB a load took 5% longer, of 1 MiB as long).
const PIECE_BYTES: usize = 512 << 10;
/// Bytes of direct reads that are copied elsewhere: what a disk sends comes to lie in no cache, and each request costs a
/// latency. Of 128 readers it is 256 MiB.
const DIRECT_PIECE_BYTES: usize = 2 << 20;
/// Memory that a reader takes beside that of the tensors, at most.
pub const MAX_READER_BYTES: u64 = DIRECT_PIECE_BYTES as u64;

/// Reads `tasks` into `memory` with `readers` threads, verifying the chunks that name a digest.
/// `memory` has a slice for each memory of the plan; those that no chunk names (mappings) may be empty. It shares no page
/// with anything else, so direct reads land in it.
///
/// # Errors
/// The first failure; the rest of the work is then abandoned. [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) names
/// chunk and bytes.
pub fn read<S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    memory: Vec<&mut [u8]>,
    readers: Readers,
) -> Result<()> {
    read_bound(reader, tasks, memory, true, readers)
}

/// [`read`] into memory of any kind: that of direct reads is copied to it.
///
/// # Errors
/// As [`read`].
pub fn read_anywhere<S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    memory: Vec<&mut [u8]>,
    readers: Readers,
) -> Result<()> {
    read_bound(reader, tasks, memory, !reader.source.is_direct(), readers)
}

/// Reads land in `memory` if `lands`.
fn read_bound<S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    memory: Vec<&mut [u8]>,
    lands: bool,
    readers: Readers,
) -> Result<()> {
    reader.check_decoded()?;
    let piece = if reader.source.is_direct() { DIRECT_PIECE_BYTES } else { PIECE_BYTES };
    let work = Work::new(bind(tasks, memory, lands, piece as u64));
    run_readers(readers, |completed| {
        let mut lap = reader.clock.start();
        let mut scratch = Scratch { piece, memory: None, elsewhere: Vec::new() };
        while let Some(task) = work.next() {
            let bytes = task.iter().map(|run| span(run.chunks).end - span(run.chunks).start).sum();
            work.stop_on_error(task.into_iter().try_for_each(|run| reader.run(run, &mut scratch, &mut lap)))?;
            completed(bytes);
        }
        Ok(())
    })
}

/// How many of the first `parts` are no more than `piece` bytes together; at least one.
fn read_together(parts: &[Bound<'_>], piece: u64) -> usize {
    let mut bytes = 0_u64;
    let fits = |part: &&Bound<'_>| {
        bytes = bytes.saturating_add(part.bytes());
        bytes <= piece
    };
    parts.iter().take_while(fits).count().max(1)
}

/// Memory for a piece of so many bytes, in pages of its own.
struct Scratch {
    piece: usize,
    memory: Option<HostBuffer>,
    /// What a run read whole brings besides what memory wants.
    elsewhere: Vec<u8>,
}

impl Scratch {
    /// Memory for `bytes`, at most a piece, from `offset` of the file: at the same place within a unit of direct reads, so
    /// that they can land there. If they do (`direct`), no child process shares it.
    fn in_step(&mut self, bytes: u64, offset: u64, direct: bool) -> Result<&mut [u8]> {
        if self.memory.is_none() {
            let memory = HostBuffer::new(self.piece + to_usize(DIRECT_ALIGN_BYTES))?;
            if direct {
                memory.keep_from_children();
            }
            self.memory = Some(memory);
        }
        let phase = to_usize(offset % DIRECT_ALIGN_BYTES);
        let memory = self.memory.as_mut().expect("it was just made").as_mut_slice();
        Ok(&mut memory[phase..phase + to_usize(bytes)])
    }
}

/// Copies those of the bytes `file` of the file, which `piece` holds, that are in `rows`, one run after another.
fn copy_runs(rows: &Rows, file: &Range<u64>, piece: &[u8], memory: &mut [u8]) {
    let first = rows.gathered(file).start;
    for (run, place) in rows.within(file.clone()) {
        let bytes = &piece[to_usize(run.start - file.start)..to_usize(run.end - file.start)];
        memory[to_usize(place - first)..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// Reads chunks and checks their digests.
pub struct ChunkReader<'a, S> {
    /// Where the bytes come from.
    pub source: &'a S,
    /// What they are, and their digests.
    pub index: &'a Index,
    /// Told of each chunk.
    pub progress: Progress<'a>,
    /// Told what the threads' time went to.
    pub clock: &'a Clock,
}

impl<S: Source> ChunkReader<'_, S> {
    /// Refuses a source that gives the frames of an encoded payload, which would be taken for tensors:
    /// [`Files`](crate::io::Files) decodes them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`].
    pub(crate) fn check_decoded(&self) -> Result<()> {
        let is_encoded = self.index.parts().iter().any(|part| part.encoding().is_some());
        if is_encoded && !self.source.is_encoded() {
            let what = "is compressed, and is read here as if it were not: read it through io::Files";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(())
    }

    /// Reads all bytes of `run`, chunks that follow each other, wanted or not, into `buffer` of that length.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read_run(&self, run: &[Chunk], buffer: &mut [u8], lap: &mut Lap<'_>) -> Result<()> {
        self.again_if_damaged(run, |digests| self.fill(buffer, span(run).start, digests, lap))
    }

    fn run(&self, mut run: Run<'_, '_>, scratch: &mut Scratch, lap: &mut Lap<'_>) -> Result<()> {
        let Run { chunks, parts } = &mut run;
        if self.source.prefers_runs() {
            let (start, elsewhere) = (span(chunks).start, &mut scratch.elsewhere);
            let read = |digests: &mut Digests<'_, S>| self.read_whole(start, parts, elsewhere, digests, lap);
            return self.again_if_damaged(chunks, read);
        }
        self.read_in_parts(chunks, parts, scratch, lap)
    }

    /// Does `read`, which reads `run`, once more if digests differ and the source may give other bytes then.
    fn again_if_damaged(
        &self,
        run: &[Chunk],
        mut read: impl FnMut(&mut Digests<'_, S>) -> Result<()>,
    ) -> Result<()> {
        let Range { start, end } = span(run);
        let mut digests = self.digests(run);
        match read(&mut digests) {
            Err(error) if error.kind() == ErrorKind::Checksum && self.source.distrust(start, end - start) => {
                digests.restart();
                read(&mut digests)
            }
            outcome => outcome,
        }
    }

    /// Reads `parts`, all bytes of a run that begins with byte `start`, by one request. What memory does not want whole goes
    /// to `elsewhere`.
    fn read_whole(
        &self,
        start: u64,
        parts: &mut [Bound<'_>],
        elsewhere: &mut Vec<u8>,
        digests: &mut Digests<'_, S>,
        lap: &mut Lap<'_>,
    ) -> Result<()> {
        let bytes = parts.iter().map(|part| to_usize(part.bytes_elsewhere())).sum::<usize>();
        if elsewhere.len() < bytes {
            *elsewhere = zeroed(bytes as u64)?;
        }
        let mut rest = elsewhere.as_mut_slice();
        let mut buffers: Vec<&mut [u8]> = Vec::with_capacity(parts.len());
        for part in &mut *parts {
            let (now, later) = mem::take(&mut rest).split_at_mut(to_usize(part.bytes_elsewhere()));
            rest = later;
            buffers.push(match part {
                Bound::Fill(memory) | Bound::Copy(memory) => memory,
                Bound::Gather(..) | Bound::Skip(_) => now,
            });
        }
        self.source.read_all_at(&mut buffers, start)?;
        lap.end(Stage::Read);
        buffers.iter().try_for_each(|buffer| digests.pass(buffer, lap))?;
        digests.pass(&[], lap)?; // a chunk may be empty
        let mut rest = elsewhere.as_slice();
        for part in parts {
            let (now, later) = rest.split_at(to_usize(part.bytes_elsewhere()));
            rest = later;
            if let Bound::Gather(file, memory, rows) = part {
                copy_runs(rows, file, now, memory);
            }
        }
        lap.end(Stage::Read);
        Ok(())
    }

    fn read_in_parts(
        &self,
        run: &[Chunk],
        parts: &mut [Bound<'_>],
        scratch: &mut Scratch,
        lap: &mut Lap<'_>,
    ) -> Result<()> {
        let mut digests = self.digests(run);
        let mut cursor = span(run).start;
        let mut rest = parts;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(read_together(rest, scratch.piece as u64));
            let bytes: u64 = now.iter().map(Bound::bytes).sum();
            match now {
                [Bound::Fill(memory)] => self.fill(memory, cursor, &mut digests, lap)?,
                several => self.scatter(several, cursor..cursor + bytes, &mut digests, scratch, lap)?,
            }
            cursor += bytes;
            rest = later;
        }
        digests.pass(&[], lap) // a chunk may be empty
    }

    fn digests<'a>(&'a self, run: &'a [Chunk]) -> Digests<'a, S> {
        Digests::new(self.source, self.index, self.progress, run)
    }

    /// Reads what follows `offset` into `memory`: past the page cache at once, as each request costs a latency; through it,
    /// if digests want the bytes, in pieces that are in the core's cache then.
    fn fill(
        &self,
        memory: &mut [u8],
        offset: u64,
        digests: &mut Digests<'_, S>,
        lap: &mut Lap<'_>,
    ) -> Result<()> {
        let at_once = self.source.is_direct() || self.source.prefers_runs() || !digests.are_wanted();
        let step = if at_once { memory.len().max(1) } else { PIECE_BYTES };
        let mut position = offset;
        for piece in memory.chunks_mut(step) {
            self.source.read_exact_at(piece, position)?;
            lap.end(Stage::Read);
            digests.pass(piece, lap)?;
            position += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads `parts`, the bytes `file`, no more than a piece, at once and copies each to its place: a request costs more
    /// than copying some hundred bytes.
    fn scatter(
        &self,
        parts: &mut [Bound<'_>],
        file: Range<u64>,
        digests: &mut Digests<'_, S>,
        scratch: &mut Scratch,
        lap: &mut Lap<'_>,
    ) -> Result<()> {
        let mut filled = scratch.in_step(file.end - file.start, file.start, self.source.is_direct())?;
        self.fill(filled, file.start, digests, lap)?;
        for part in parts {
            let (now, later) = mem::take(&mut filled).split_at_mut(to_usize(part.bytes()));
            match part {
                Bound::Fill(memory) | Bound::Copy(memory) => memory.copy_from_slice(now),
                Bound::Gather(file, memory, rows) => copy_runs(rows, file, now, memory),
                Bound::Skip(_) => {}
            }
            filled = later;
        }
        lap.end(Stage::Read);
        Ok(())
    }
}
