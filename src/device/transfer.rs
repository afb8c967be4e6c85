//! The transfer engine: reader threads fill staging buffers, and copies carry them on while the next are filled.

use std::ops::Range;

pub use super::lane::DEPTH;
use super::{Device, Staging, lane::Lane, pool::Pool};
use crate::{
    error::Result,
    io::{
        Source,
        read::{ChunkReader, Work, run_threads},
    },
    plan::{Chunk, DIRECT_ALIGN_BYTES, Target},
    stats::{Lap, Stage},
};

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
        let mut lane = Lane::new(device, pool, capacity)?;
        let mut lap = reader.clock.start();
        let mut copy_all = || {
            while let Some(task) = work.next() {
                carry(task, reader, &mut lane, &mut lap)?;
            }
            lane.join()
        };
        work.stop_on_error(copy_all())
    })
}

/// Reads the chunks of `task` into one buffer, laid out as in the file, and queues their copies.
fn carry<S: Source, D: Device>(
    task: &[Chunk],
    reader: &ChunkReader<'_, S>,
    lane: &mut Lane<'_, D>,
    lap: &mut Lap<'_>,
) -> Result<()> {
    let origin = origin_of(task);
    let place = |offset: u64| usize::try_from(offset - origin).expect("a task fits in memory");
    take_buffer(lane, lap)?;
    let (device, stream, buffer) = lane.in_hand();
    for chunk in task {
        let bytes = &mut buffer.bytes()[place(chunk.offset)..place(chunk.end())];
        reader.read_whole(chunk, bytes, lap)?;
    }
    gather(task, origin, buffer.bytes());
    for (range, memory, offset) in copies(task) {
        device.copy(stream, buffer, place(range.start)..place(range.end), memory, offset)?;
    }
    device.mark_busy(stream, buffer)?;
    lap.end(Stage::Queue);
    Ok(())
}

/// Takes one more buffer from the pool, or the one that was busy first, once its copies are done.
fn take_buffer<D: Device>(lane: &mut Lane<'_, D>, lap: &mut Lap<'_>) -> Result<()> {
    let fresh = lane.take_fresh();
    lap.end(Stage::Staging);
    if !fresh? {
        let finished = lane.finish_oldest().map(drop);
        lap.end(Stage::Device);
        finished?;
        lane.reuse_oldest();
    }
    Ok(())
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
