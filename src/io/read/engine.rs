//! The read engine: carries out the chunks of a plan.

use std::{iter, mem, ops::Range, sync::Arc};

use super::threads::{Work, run_threads};
use crate::{
    error::{Error, ErrorKind, Result},
    format::{
        Checksums, Index, Record,
        checksum::{Digest, Hasher},
    },
    io::{HostBuffer, Source},
    plan::{Chunk, DIRECT_ALIGN_BYTES, Move, Rows},
    progress::Progress,
    stats::{Clock, Lap, Stage},
};

/// Bytes read at a time when a digest wants them: few enough to be in the core's cache when it looks (of 256 KiB a load
/// took 5% longer, of 1 MiB as long).
const PIECE_BYTES: usize = 512 << 10;

/// Reads `tasks` into `memory` with `threads` threads, verifying the chunks that name a digest.
/// `memory` has a slice for each memory of the plan; those that no chunk names (mappings) may be empty. It shares no page
/// with anything else, so direct reads land in it.
///
/// # Errors
/// The first failure; the rest of the work is then abandoned. [`ErrorKind::Checksum`] names chunk and bytes.
pub fn read<S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    memory: Vec<&mut [u8]>,
    threads: usize,
) -> Result<()> {
    read_bound(reader, bind(tasks, memory, true), threads)
}

/// [`read`] into memory of any kind: that of direct reads is copied to it.
///
/// # Errors
/// As [`read`].
pub fn read_anywhere<S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    memory: Vec<&mut [u8]>,
    threads: usize,
) -> Result<()> {
    read_bound(reader, bind(tasks, memory, !reader.source.is_direct()), threads)
}

fn read_bound<'m, S: Source>(
    reader: &ChunkReader<'_, S>,
    tasks: impl Iterator<Item = Vec<BoundChunk<'m>>> + Send,
    threads: usize,
) -> Result<()> {
    let work = Work::new(tasks);
    run_threads(threads, || {
        let mut lap = reader.clock.start();
        let mut scratch = Scratch::default();
        while let Some(task) = work.next() {
            work.stop_on_error(reader.run(task, &mut scratch, &mut lap))?;
        }
        Ok(())
    })
}

/// A chunk with the memory it fills.
struct BoundChunk<'m> {
    offset: u64,
    parts: Vec<Bound<'m>>,
    digest: Option<usize>,
}

enum Bound<'m> {
    /// Read straight into the memory.
    Fill(&'m mut [u8]),
    /// Read elsewhere and copied to the memory.
    Copy(&'m mut [u8]),
    /// Bytes of the file, of which those of the runs are copied to the memory.
    Gather(Range<u64>, &'m mut [u8], Arc<Rows>),
    Skip(u64),
}

impl<'m> Bound<'m> {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Fill(memory) | Self::Copy(memory) => memory.len() as u64,
            Self::Gather(file, ..) => file.end - file.start,
            Self::Skip(bytes) => *bytes,
        }
    }

    /// Bytes that nobody wants.
    fn gap(file: Range<u64>) -> impl Iterator<Item = Self> {
        let gap = (!file.is_empty()).then(|| Self::Skip(file.end - file.start));
        gap.into_iter().flat_map(move |gap| gap.in_pieces(file.start))
    }

    /// The first `bytes` of it, and the others.
    fn split(self, bytes: u64) -> (Self, Self) {
        match self {
            Self::Fill(memory) => {
                let (now, later) = memory.split_at_mut(to_usize(bytes));
                (Self::Fill(now), Self::Fill(later))
            }
            Self::Copy(memory) => {
                let (now, later) = memory.split_at_mut(to_usize(bytes));
                (Self::Copy(now), Self::Copy(later))
            }
            Self::Gather(Range { start, end }, memory, rows) => {
                let middle = start + bytes;
                let wanted = rows.gathered(&(start..middle));
                let (now, later) = memory.split_at_mut(to_usize(wanted.end - wanted.start));
                let first = Self::Gather(start..middle, now, Arc::clone(&rows));
                (first, Self::Gather(middle..end, later, rows))
            }
            Self::Skip(all) => (Self::Skip(bytes), Self::Skip(all - bytes)),
        }
    }

    /// The same, which begins at `offset` of the file, in parts of no more than a piece each unless it is read straight
    /// into its memory.
    fn in_pieces(self, offset: u64) -> impl Iterator<Item = Self> + use<'m> {
        let mut rest = Some((self, offset));
        iter::from_fn(move || {
            let (part, offset) = rest.take()?;
            // Up to where pieces begin, which is where units of direct reads do.
            let room = PIECE_BYTES as u64 - offset % PIECE_BYTES as u64;
            if part.bytes() <= room || matches!(part, Self::Fill(_)) {
                return Some(part);
            }
            let (now, later) = part.split(room);
            rest = Some((later, offset + room));
            Some(now)
        })
    }
}

/// How many of the first `parts` are no more than a piece together; at least one.
fn read_together(parts: &[Bound<'_>]) -> usize {
    let mut bytes = 0_u64;
    let fits = |part: &&Bound<'_>| {
        bytes = bytes.saturating_add(part.bytes());
        bytes <= PIECE_BYTES as u64
    };
    parts.iter().take_while(fits).count().max(1)
}

/// Memory for a piece, in pages of its own.
#[derive(Default)]
struct Scratch(Option<HostBuffer>);

impl Scratch {
    /// Memory for `bytes`, at most a piece, from `offset` of the file: at the same place within a unit of direct reads, so
    /// that they can land there. If they do (`direct`), no child process shares it.
    fn in_step(&mut self, bytes: u64, offset: u64, direct: bool) -> Result<&mut [u8]> {
        if self.0.is_none() {
            let memory = HostBuffer::new(PIECE_BYTES + to_usize(DIRECT_ALIGN_BYTES))?;
            if direct {
                memory.keep_from_children();
            }
            self.0 = Some(memory);
        }
        let phase = to_usize(offset % DIRECT_ALIGN_BYTES);
        let memory = self.0.as_mut().expect("it was just made").as_mut_slice();
        Ok(&mut memory[phase..phase + to_usize(bytes)])
    }
}

/// Hands each task its disjoint slices of `memory`, where reads land if `lands`. Chunks come in file order and a plan places in file order, so
/// each memory is split front to back.
fn bind<'p, 'm: 'p>(
    tasks: &'p [Vec<Chunk>],
    memory: Vec<&'m mut [u8]>,
    lands: bool,
) -> impl Iterator<Item = Vec<BoundChunk<'m>>> + Send + use<'p, 'm> {
    let mut unfilled: Vec<(u64, &mut [u8])> = memory.into_iter().map(|memory| (0, memory)).collect();
    let mut take = move |memory: usize, offset: u64, bytes: u64| {
        let (position, rest) = &mut unfilled[memory];
        let skip = to_usize(offset - *position);
        let (taken, left) = mem::take(rest)[skip..].split_at_mut(to_usize(bytes));
        (*position, *rest) = (offset + bytes, left);
        taken
    };
    let mut tasks = tasks.iter();
    iter::from_fn(move || {
        let mut bind_chunk = |chunk: &Chunk| {
            let mut parts = Vec::with_capacity(chunk.parts.len());
            let mut cursor = chunk.offset;
            for Move { file, memory, place, rows } in chunk.moves() {
                parts.extend(Bound::gap(cursor..file.start));
                cursor = file.end;
                let slice = take(memory, place.start, place.end - place.start);
                let offset = file.start;
                let bound = match rows {
                    None if lands => Bound::Fill(slice),
                    None => Bound::Copy(slice),
                    Some(rows) => Bound::Gather(file, slice, Arc::clone(rows)),
                };
                parts.extend(bound.in_pieces(offset));
            }
            parts.extend(Bound::gap(cursor..chunk.end()));
            BoundChunk { offset: chunk.offset, parts, digest: chunk.digest }
        };
        tasks.next().map(|chunks| chunks.iter().map(&mut bind_chunk).collect())
    })
}

/// Offsets within memory that exists fit `usize`.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("offsets into memory fit usize")
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
    /// Reads all bytes of `chunk`, wanted or not, into `buffer` of that length.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read_whole(&self, chunk: &Chunk, buffer: &mut [u8], lap: &mut Lap<'_>) -> Result<()> {
        let mut hasher = self.hasher(chunk.offset, chunk.digest);
        self.fill(buffer, chunk.offset, hasher.as_mut(), lap)?;
        self.finish(chunk.digest.zip(hasher), chunk.offset, chunk.end(), lap)?;
        self.progress.advance(buffer.len() as u64)
    }

    fn run(&self, task: Vec<BoundChunk<'_>>, scratch: &mut Scratch, lap: &mut Lap<'_>) -> Result<()> {
        for chunk in task {
            let (offset, digest) = (chunk.offset, chunk.digest);
            let mut hasher = self.hasher(offset, digest);
            let mut cursor = offset;
            let mut parts = chunk.parts;
            let mut rest = parts.as_mut_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at_mut(read_together(rest));
                cursor += match now {
                    [Bound::Fill(memory)] => self.fill(memory, cursor, hasher.as_mut(), lap)?,
                    several => self.scatter(several, cursor, hasher.as_mut(), scratch, lap)?,
                };
                rest = later;
            }
            self.finish(digest.zip(hasher), offset, cursor, lap)?;
            self.progress.advance(cursor - offset)?;
        }
        Ok(())
    }

    fn fill(
        &self,
        memory: &mut [u8],
        offset: u64,
        hasher: Option<&mut Hasher>,
        lap: &mut Lap<'_>,
    ) -> Result<u64> {
        match hasher {
            None => {
                self.source.read_exact_at(memory, offset)?;
                lap.end(Stage::Read);
            }
            Some(hasher) => {
                let mut position = offset;
                // A disk takes longer for small requests, and what it sends comes to lie in no cache.
                let step = if self.source.is_direct() { memory.len().max(1) } else { PIECE_BYTES };
                for piece in memory.chunks_mut(step) {
                    self.source.read_exact_at(piece, position)?;
                    lap.end(Stage::Read);
                    hasher.update(piece);
                    lap.end(Stage::Hash);
                    position += piece.len() as u64;
                }
            }
        }
        Ok(memory.len() as u64)
    }

    /// Reads `parts`, no more than a piece, at once and copies each to its place: a request costs more than copying some
    /// hundred bytes.
    fn scatter(
        &self,
        parts: &mut [Bound<'_>],
        offset: u64,
        hasher: Option<&mut Hasher>,
        scratch: &mut Scratch,
        lap: &mut Lap<'_>,
    ) -> Result<u64> {
        let bytes = parts.iter().map(Bound::bytes).sum();
        let mut filled = scratch.in_step(bytes, offset, self.source.is_direct())?;
        self.fill(filled, offset, hasher, lap)?;
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
        Ok(bytes)
    }

    /// What computes the digest of the chunk at `offset` to compare with that of this number.
    fn hasher(&self, offset: u64, digest: Option<usize>) -> Option<Hasher> {
        let checksums = || self.index.part_at(offset).checksums();
        let algorithm = || checksums().map(Checksums::algorithm).unwrap_or_default();
        digest.map(|_| Hasher::new(algorithm()))
    }

    /// Ends a chunk that has a digest.
    fn finish(&self, digest: Option<(usize, Hasher)>, start: u64, end: u64, lap: &mut Lap<'_>) -> Result<()> {
        let Some((number, hasher)) = digest else {
            return Ok(());
        };
        self.check(number, start, end, hasher.finish())?;
        lap.end(Stage::Hash);
        Ok(())
    }

    fn check(&self, number: usize, start: u64, end: u64, actual: Digest) -> Result<()> {
        let digests = self.index.part_at(start).checksums().map(Checksums::digests);
        match digests.and_then(|digests| digests.get(number)) {
            Some(&expected) if expected != actual => {
                let (path, base) = self.source.file_at(start);
                Err(Error::new(
                    ErrorKind::Checksum,
                    format!(
                        "chunk {number} is damaged, bytes {}..{} {}: expected digest {expected}, got {actual}",
                        start - base,
                        end - base,
                        self.contents(start..end)
                    ),
                )
                .from_byte(start)
                .at(path))
            }
            Some(_) => Ok(()),
            None => {
                Err(Error::new(ErrorKind::Internal, format!("the plan names a missing digest, {number}")))
            }
        }
    }

    /// What lies in these bytes of the file, for people.
    fn contents(&self, bytes: Range<u64>) -> String {
        const SHOWN: usize = 3;
        let touches = |record: &&Record| {
            let file = self.index.file_range(record);
            file.start < bytes.end && bytes.start < file.end
        };
        let names: Vec<&str> = self.index.records().iter().filter(touches).map(Record::name).collect();
        match names.len() {
            0 => "(padding)".to_owned(),
            count if count > SHOWN => {
                format!("(of {:?} and {} more tensors)", &names[..SHOWN], count - SHOWN)
            }
            _ => format!("(of {names:?})"),
        }
    }
}
