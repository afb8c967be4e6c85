//! The transfer engine: reader threads fill staging buffers, and copies carry them on while the next are filled.

use std::ops::Range;

pub use super::lane::DEPTH;
use super::{Device, Staging, lane::Lane, pool::Pool};
use crate::{
    error::Result,
    io::{
        Source,
        read::{ChunkReader, Work, run_readers, runs, span},
    },
    plan::{Chunk, DIRECT_ALIGN_BYTES, Readers},
    stats::{Lap, Stage},
};

/// Bytes of file in one buffer when they come from the page cache: with two readers all staging stays within 8 MiB of
/// cache (reads through 16 took 7% longer), and a copy is long enough that queueing it (some microseconds) does not count.
pub const NEAR_TASK_BYTES: u64 = 2 << 20;
/// The same when reads wait for a disk or a network, so that each latency brings more.
pub const FAR_TASK_BYTES: u64 = 4 << 20;
/// Most bytes of file in one buffer: four of them are in the staging memory of a process.
const MAX_TASK_BYTES: u64 = 64 << 20;
/// Sizes of staging buffers are multiples of this.
pub const STAGING_STEP_BYTES: u64 = 1 << 20;

/// Reads `tasks` with `readers` threads and copies them to `device`'s memory, whose numbers are those of the plan.
///
/// When it returns, the caller's stream waits for the last copy. After an error, or a panic, the copies of the thread that
/// failed are over, and the caller's stream waits for those of the others. Of all threads only this one touches it.
///
/// # Errors
/// The first failure of source, digest, staging memory or driver.
pub fn transfer<S: Source, D: Device>(
    reader: &ChunkReader<'_, S>,
    tasks: &[Vec<Chunk>],
    device: &D,
    pool: &Pool<D::Staging>,
    readers: Readers,
) -> Result<()> {
    reader.check_decoded()?;
    let capacity = staging_bytes(tasks);
    let work = Work::new(tasks.iter());
    let read_all = |completed: &dyn Fn(u64)| {
        let _entered = device.enter()?;
        let mut lane = Lane::new(device, pool, capacity)?;
        let mut lap = reader.clock.start();
        while let Some(task) = work.next() {
            carry(task, reader, &mut lane, &mut lap)?;
            completed(task.iter().map(Chunk::bytes).sum());
        }
        lane.finish();
        Ok(())
    };
    // More could only wait for a buffer, each with a task that nobody else does.
    let readers = readers.at_most(pool.most(capacity));
    let outcome = run_readers(readers, |completed| work.stop_on_error(read_all(completed)));
    outcome.and(device.join())
}

/// Reads the chunks of `task` into one buffer, laid out as in the file, and queues their copies.
fn carry<S: Source, D: Device>(
    task: &[Chunk],
    reader: &ChunkReader<'_, S>,
    lane: &mut Lane<'_, &D>,
    lap: &mut Lap<'_>,
) -> Result<()> {
    let origin = origin_of(task);
    let place = |offset: u64| usize::try_from(offset - origin).expect("a task fits in memory");
    take_buffer(lane, lap)?;
    let (device, stream, buffer) = lane.in_hand();
    for run in runs(task) {
        let Range { start, end } = span(run);
        reader.read_run(run, &mut buffer.bytes()[place(start)..place(end)], lap)?;
    }
    for Copy { staged, memory, offset } in gather(task, origin, buffer.bytes()) {
        device.copy(stream, buffer, staged, memory, offset)?;
    }
    device.mark_busy(stream, buffer)?;
    lap.end(Stage::Queue);
    Ok(())
}

/// Takes one more buffer from the pool, or the one that was busy first, once its copies are done.
fn take_buffer<D: Device>(lane: &mut Lane<'_, &D>, lap: &mut Lap<'_>) -> Result<()> {
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

/// `readers`, each of which takes `bytes` at a time, as far as `limit` bytes of staging memory suffice for two buffers of each:
/// who finds none waits for those of others, with a task that nobody else does meanwhile.
#[must_use]
pub fn within(limit: usize, readers: Readers, bytes: u64) -> (Readers, u64) {
    let each = (limit / DEPTH) as u64;
    let most = (each / STAGING_STEP_BYTES * STAGING_STEP_BYTES).clamp(STAGING_STEP_BYTES, MAX_TASK_BYTES);
    let bytes = bytes.min(most);
    let served = usize::try_from(each / bytes.max(1)).unwrap_or(usize::MAX);
    (readers.at_most(served.max(1)), bytes)
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

/// A copy to a device.
struct Copy {
    /// Bytes of the buffer.
    staged: Range<usize>,
    memory: usize,
    /// Where in the memory they go.
    offset: u64,
}

/// The copies that a task takes from `staged`, which begins with the byte `origin` of the file. Neighbours are joined:
/// the runs of a slice are moved together for that, to where the first one lies.
fn gather(task: &[Chunk], origin: u64, staged: &mut [u8]) -> Vec<Copy> {
    let place = |offset: u64| usize::try_from(offset - origin).expect("a task fits in memory");
    let mut copies: Vec<Copy> = Vec::new();
    for part in task.iter().flat_map(Chunk::moves) {
        for (run, offset) in part.runs() {
            let run = place(run.start)..place(run.end);
            let last = copies.last_mut().filter(|last| {
                last.memory == part.memory && last.offset + last.staged.len() as u64 == offset
            });
            match last {
                Some(last) if part.rows.is_some() || last.staged.end == run.start => {
                    let bytes = run.len();
                    if last.staged.end != run.start {
                        staged.copy_within(run, last.staged.end);
                    }
                    last.staged.end += bytes;
                }
                _ => copies.push(Copy { staged: run, memory: part.memory, offset }),
            }
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_have_two_buffers_each_within_the_staging_memory() {
        const MIB: u64 = 1 << 20;
        let readers = Readers { first: 16, most: 128 };
        let within = |limit: u64, bytes: u64| {
            let (Readers { first, most }, bytes) =
                within(usize::try_from(limit * MIB).unwrap(), readers, bytes);
            (first, most, bytes / MIB)
        };
        assert_eq!(within(256, 4 * MIB), (16, 32, 4));
        assert_eq!(within(256, 2 * MIB), (16, 64, 2));
        assert_eq!(within(256, 1 << 30), (2, 2, 64));
        assert_eq!(within(5, 4 * MIB), (1, 1, 2));
        assert_eq!(within(1, 4 * MIB), (1, 1, 1));
        assert_eq!(within(1 << 20, 4 * MIB), (16, 128, 4));
    }
}
