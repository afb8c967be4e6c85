//! The transfer engine: reader threads fill staging buffers, and copies carry them on while the next are filled.

use std::{collections::VecDeque, ops::Range};

use super::{Device, Staging, pool::Pool};
use crate::{
    error::Result,
    io::{
        Source,
        read::{ChunkReader, Work, run_threads},
    },
    plan::{Chunk, DIRECT_ALIGN_BYTES, Target},
    stats::{Lap, Stage},
};

/// Buffers of one reader thread: one is filled while the other is copied. A third only costs: the more memory reads
/// go through, the less of it a processor's cache still holds.
pub const DEPTH: usize = 2;
/// Most bytes of file in one buffer: with two readers all staging stays within 8 MiB of cache (reads through 16 took 7%
/// longer), and a copy is long enough that queueing it (some microseconds) does not count.
pub const MAX_TASK_BYTES: u64 = 2 << 20;
/// Sizes of staging buffers are multiples of this.
pub const STAGING_STEP_BYTES: u64 = 1 << 20;

/// Reads `tasks` and copies them to `device`'s memory, whose numbers are those of the plan.
///
/// When it returns, the caller's stream waits for the last copy. After an error the copies of the thread that failed are
/// over, and the caller's stream waits for those of the others.
///
/// # Errors
/// The first failure of source, digest, staging memory or driver.
pub fn transfer<S: Source, D: Device>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    device: &D,
    pool: &Pool<D::Staging>,
    threads: usize,
) -> Result<()> {
    let capacity = staging_bytes(tasks);
    let work = Work::new(tasks.iter());
    run_threads(threads, || {
        let stream = device.stream()?;
        let lap = reader.clock.start();
        let mut lane = Lane { device, pool, stream, capacity, ring: VecDeque::with_capacity(DEPTH), lap };
        let mut copy_all = || {
            while let Some(task) = work.next() {
                work.stop_on_error(lane.carry(task, reader))?;
            }
            lane.device.join(&lane.stream)
        };
        let outcome = copy_all();
        if outcome.is_err() {
            work.stop();
            device.drain(&lane.stream);
        }
        lane.ring.into_iter().for_each(|buffer| pool.release(buffer));
        outcome
    })
}

/// One reader thread's stream and buffers.
struct Lane<'a, D: Device> {
    device: &'a D,
    pool: &'a Pool<D::Staging>,
    stream: D::Stream,
    /// Bytes of each buffer.
    capacity: usize,
    /// The thread's buffers, the longest busy first.
    ring: VecDeque<D::Staging>,
    lap: Lap<'a>,
}

impl<D: Device> Lane<'_, D> {
    /// Reads the chunks of `task` into one buffer, laid out as in the file, and queues their copies.
    fn carry<S: Source>(&mut self, task: &[Chunk], reader: &ChunkReader<'_, S>) -> Result<()> {
        let origin = origin_of(task);
        let place = |offset: u64| usize::try_from(offset - origin).expect("a task fits in memory");
        let mut buffer = self.next_buffer()?;
        let outcome = (|| {
            for chunk in task {
                let bytes = &mut buffer.bytes()[place(chunk.offset)..place(chunk.end())];
                reader.read_whole(chunk, bytes, &mut self.lap)?;
            }
            gather(task, origin, buffer.bytes());
            for (range, memory, offset) in copies(task) {
                let range = place(range.start)..place(range.end);
                self.device.copy(&self.stream, &buffer, range, memory, offset)?;
            }
            self.device.mark_busy(&self.stream, &mut buffer)?;
            self.lap.end(Stage::Queue);
            Ok(())
        })();
        if outcome.is_err() {
            // Nothing may be reading the buffer when the pool gives it to the next load.
            self.device.drain(&self.stream);
        }
        self.ring.push_back(buffer);
        outcome
    }

    /// A buffer from the pool, the thread's first in any case, further ones if they are to be had at once.
    fn fresh_buffer(&self) -> Result<Option<D::Staging>> {
        if self.ring.is_empty() {
            return self.pool.acquire(self.device, self.capacity).map(Some);
        }
        self.pool.try_acquire(self.device, self.capacity)
    }

    /// One more buffer from the pool, or the one of this thread that was busy first, once its copies are done.
    fn next_buffer(&mut self) -> Result<D::Staging> {
        if self.ring.len() < DEPTH {
            let fresh = self.fresh_buffer();
            self.lap.end(Stage::Staging);
            if let Some(buffer) = fresh? {
                return Ok(buffer);
            }
        }
        let mut oldest = self.ring.pop_front().expect("the pool gives a thread at least one");
        let waited = oldest.wait_idle();
        self.lap.end(Stage::Device);
        match waited {
            Ok(()) => Ok(oldest),
            Err(error) => {
                self.ring.push_front(oldest);
                Err(error)
            }
        }
    }
}

/// Where in the file the first byte of a task's buffer lies: direct reads land in it.
fn origin_of(task: &[Chunk]) -> u64 {
    task.first().map_or(0, |first| first.offset - first.offset % DIRECT_ALIGN_BYTES)
}

/// Bytes that suffice to stage any of the tasks, rounded so that loads of like sizes share buffers.
///
/// # Panics
/// If a task does not fit in memory.
#[must_use]
pub fn staging_bytes(tasks: &[Vec<Chunk>]) -> usize {
    let span = |task: &Vec<Chunk>| task.last().map_or(0, Chunk::end) - origin_of(task);
    let largest = tasks.iter().map(span).max().unwrap_or(0);
    usize::try_from(largest.next_multiple_of(STAGING_STEP_BYTES)).expect("a task fits in memory")
}

/// Moves the runs of each slice's part of a task together, to where its first one lies: `staged` begins with the byte
/// `origin` of the file.
fn gather(task: &[Chunk], origin: u64, staged: &mut [u8]) {
    let place = |offset: u64| usize::try_from(offset - origin).expect("a task fits in memory");
    for (file, target) in targets(task) {
        let Target::Rows(_, rows) = target else {
            continue;
        };
        let mut end = None;
        for (run, _) in rows.within(file) {
            let to = end.unwrap_or(place(run.start));
            staged.copy_within(place(run.start)..place(run.end), to);
            end = Some(to + place(run.end) - place(run.start));
        }
    }
}

/// The copies that a task takes: bytes of the file (of a slice: where [`gather`] has put its runs), memory and offset
/// there, neighbours joined.
fn copies(task: &[Chunk]) -> Vec<(Range<u64>, usize, u64)> {
    let mut copies: Vec<(Range<u64>, usize, u64)> = Vec::new();
    for (file, target) in targets(task) {
        let (memory, place) = target.place(&file);
        let start = match target {
            Target::Bytes(..) => Some(file.start),
            Target::Rows(_, rows) => rows.within(file).next().map(|(run, _)| run.start),
        };
        let Some(start) = start else {
            continue;
        };
        let bytes = start..start + (place.end - place.start);
        match copies.last_mut() {
            Some((last, to, at))
                if *to == memory
                    && last.end == bytes.start
                    && *at + (last.end - last.start) == place.start =>
            {
                last.end = bytes.end;
            }
            _ => copies.push((bytes, memory, place.start)),
        }
    }
    copies
}

/// The parts of a task that a memory wants, and where they lie in the file.
fn targets(task: &[Chunk]) -> impl Iterator<Item = (Range<u64>, &Target)> {
    task.iter().flat_map(|chunk| {
        let mut end = chunk.offset;
        chunk.parts.iter().filter_map(move |part| {
            let file = end..end + part.bytes;
            end = file.end;
            part.target.as_ref().map(|target| (file, target))
        })
    })
}
