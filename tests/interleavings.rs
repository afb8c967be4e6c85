//! The staging ring and the pinned pool under a scheduler that tries interleavings: `make models`. The code is the
//! crate's own; its locks and threads are shuttle's, and so are those of the device here, which runs copies whenever
//! the scheduler lets it.
#![cfg(shuttle)]

mod common;

use std::{collections::VecDeque, env, ops::Range, sync::Arc};

use common::{packed_by_default, settings, tensor};
use flashpack::{
    Error, ErrorKind, Progress, Reader, Result,
    device::{Device, Staging, pool::Pool, transfer},
    format::DType,
    io::{
        memory::{Faults, MemorySource},
        read::{ChunkReader, Work, run_threads},
    },
    plan::{Ignore, Memory, Place, ReadPlan, Readers, Selection, Verify},
    stats::Clock,
};
use shuttle::{
    sync::{Condvar, Mutex},
    thread,
};

/// Schedules tried by each check of a whole transfer, half at random, half by priorities with three changes.
fn schedules() -> usize {
    env::var("MODEL_SCHEDULES").map_or(600, |number| number.parse().expect("MODEL_SCHEDULES is a number"))
}
/// One staging buffer: each is of the smallest size there is.
const BUFFER: usize = transfer::STAGING_STEP_BYTES as usize;

fn explore(check: impl Fn() + Send + Sync + 'static) {
    let check = Arc::new(check);
    let again = check.clone();
    shuttle::check_random(move || check(), schedules() / 2);
    shuttle::check_pct(move || again(), schedules() / 2, 3);
}

/// Copies in the order they were queued, and how many are done.
#[derive(Default)]
struct Stream {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Copy>,
    queued: usize,
    done: usize,
    closed: bool,
}

struct Copy {
    from: Arc<Vec<u8>>,
    range: Range<usize>,
    memory: usize,
    offset: usize,
}

impl Stream {
    fn run(&self, memories: &Mutex<Vec<Vec<u8>>>) {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(Copy { from, range, memory, offset }) = state.queue.pop_front() {
                drop(state);
                // A copy takes a while: others run before it and after.
                thread::yield_now();
                memories.lock().unwrap()[memory][offset..offset + range.len()].copy_from_slice(&from[range]);
                drop(from);
                state = self.state.lock().unwrap();
                state.done += 1;
                self.changed.notify_all();
            } else if state.closed {
                return;
            } else {
                state = self.changed.wait(state).unwrap();
            }
        }
    }

    fn wait_for(&self, number: usize) {
        let mut state = self.state.lock().unwrap();
        while state.done < number {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn close(&self) {
        self.state.lock().unwrap().closed = true;
        self.changed.notify_all();
    }
}

/// A device with a thread for each stream.
struct Async {
    memories: Arc<Mutex<Vec<Vec<u8>>>>,
    streams: Mutex<Vec<Arc<Stream>>>,
    /// What the caller's stream waits for: streams, and how many of their copies.
    joined: Mutex<Vec<(Arc<Stream>, usize)>>,
    copies: Mutex<usize>,
    /// The n-th copy, counted from 1, is refused; 0: none is.
    fail_copy: usize,
    fail_stage: bool,
    /// What stands for the copies of the n-th buffer tells of a failure when they are done.
    fail_event: usize,
    marked: Mutex<usize>,
}

impl Async {
    fn new(plan: &ReadPlan, fail_copy: usize) -> Self {
        let room = |memory: &Memory| match *memory {
            Memory::Buffer(bytes) => vec![0xAA; usize::try_from(bytes).unwrap()],
            Memory::Mapping => panic!("staged plans map nothing"),
        };
        Self {
            memories: Arc::new(Mutex::new(plan.memory.iter().map(room).collect())),
            streams: Mutex::default(),
            joined: Mutex::default(),
            copies: Mutex::default(),
            fail_copy,
            fail_stage: false,
            fail_event: 0,
            marked: Mutex::default(),
        }
    }

    /// What the caller's stream sees once it gets to run.
    fn seen_by_caller(&self) -> Vec<Vec<u8>> {
        for (stream, number) in self.joined.lock().unwrap().iter() {
            stream.wait_for(*number);
        }
        self.memories.lock().unwrap().clone()
    }

    fn in_flight(&self) -> usize {
        let streams = self.streams.lock().unwrap();
        let open = |stream: &Arc<Stream>| {
            let state = stream.state.lock().unwrap();
            state.queued - state.done
        };
        streams.iter().map(open).sum()
    }

    fn close(&self) {
        self.streams.lock().unwrap().iter().for_each(|stream| stream.close());
    }
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("{what} was refused"))
}

impl Device for Async {
    type Staging = Buffer;
    type Stream = Arc<Stream>;
    type Entered = ();

    fn enter(&self) -> Result<()> {
        Ok(())
    }

    fn stage(&self, bytes: usize) -> Result<Buffer> {
        if self.fail_stage {
            return Err(refused("memory"));
        }
        Ok(Buffer { bytes: Arc::new(vec![0; bytes]), busy: None, failed: false })
    }

    fn stream(&self) -> Result<Arc<Stream>> {
        let (stream, memories) = (Arc::new(Stream::default()), self.memories.clone());
        let runs = stream.clone();
        thread::spawn(move || runs.run(&memories));
        self.streams.lock().unwrap().push(stream.clone());
        Ok(stream)
    }

    fn copy(
        &self,
        stream: &Arc<Stream>,
        staging: &Buffer,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()> {
        let mut copies = self.copies.lock().unwrap();
        *copies += 1;
        if *copies == self.fail_copy {
            return Err(refused("a copy"));
        }
        let mut state = stream.state.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        state.queue.push_back(Copy { from: staging.bytes.clone(), range, memory, offset });
        state.queued += 1;
        stream.changed.notify_all();
        Ok(())
    }

    fn mark_busy(&self, stream: &Arc<Stream>, staging: &mut Buffer) -> Result<()> {
        let number = stream.state.lock().unwrap().queued;
        staging.busy = Some((stream.clone(), number));
        let mut marked = self.marked.lock().unwrap();
        *marked += 1;
        staging.failed = *marked == self.fail_event;
        Ok(())
    }

    fn drain(&self, stream: &Arc<Stream>) -> Result<()> {
        let number = stream.state.lock().unwrap().queued;
        stream.wait_for(number);
        Ok(())
    }

    fn join(&self) -> Result<()> {
        let queued = |stream: &Arc<Stream>| (stream.clone(), stream.state.lock().unwrap().queued);
        let streams: Vec<_> = self.streams.lock().unwrap().iter().map(queued).collect();
        self.joined.lock().unwrap().extend(streams);
        Ok(())
    }
}

struct Buffer {
    /// Queued copies hold it, too: as long as they do, nobody may write to it.
    bytes: Arc<Vec<u8>>,
    busy: Option<(Arc<Stream>, usize)>,
    failed: bool,
}

impl Staging for Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.bytes).expect("a buffer is written to only after its copies")
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is_idle(&mut self) -> Result<bool> {
        let idle = |(stream, number): &(Arc<Stream>, usize)| stream.state.lock().unwrap().done >= *number;
        let idle = self.busy.as_ref().is_none_or(idle);
        if idle && self.failed { Err(refused("an event")) } else { Ok(idle) }
    }

    fn wait_idle(&mut self) -> Result<()> {
        if let Some((stream, number)) = self.busy.take() {
            stream.wait_for(number);
        }
        if self.failed { Err(refused("an event")) } else { Ok(()) }
    }
}

/// A file with six pages of one tensor, each a task, and the tensor's bytes.
fn model() -> (Vec<u8>, Vec<u8>) {
    let tensor = tensor("weight", DType::Uint8, &[6 * 4096]);
    (packed_by_default(std::slice::from_ref(&tensor)), tensor.bytes)
}

fn open(image: &[u8], faults: Faults) -> Reader<MemorySource> {
    Reader::new(MemorySource::with_faults(image.to_vec(), faults)).unwrap()
}

fn plan(reader: &Reader<MemorySource>) -> ReadPlan {
    let staged = settings(Place::Device, Verify::Never, 2, 4096);
    ReadPlan::new(reader.index(), Selection::Except(&Ignore::default()), staged).unwrap()
}

fn run(
    reader: &Reader<MemorySource>,
    plan: &ReadPlan,
    device: &Async,
    pool: &Pool<Buffer>,
    threads: usize,
) -> Result<()> {
    let (progress, clock) = (Progress::SILENT, Clock::default());
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock: &clock };
    transfer::transfer(&chunks, &plan.tasks, device, pool, Readers::fixed(threads))
}

#[test]
fn the_device_gets_every_byte_whatever_the_order() {
    let (image, bytes) = model();
    let reader = open(&image, Faults::default());
    let plan = plan(&reader);
    assert_eq!(plan.tasks.len(), 6);
    let shared = Arc::new((reader, plan, bytes));
    for (buffers, threads) in [(1, 2), (2, 2), (3, 2), (4, 3)] {
        let shared = shared.clone();
        explore(move || {
            let (reader, plan, bytes) = &*shared;
            let (device, pool) = (Async::new(plan, 0), Pool::new(buffers * BUFFER));
            run(reader, plan, &device, &pool, threads).unwrap();
            assert_eq!(device.seen_by_caller(), [&bytes[..]]);
            assert!(pool.usage().peak_bytes <= buffers * BUFFER);
            pool.clear();
            assert_eq!(pool.usage().bytes, 0, "no buffer was lost");
            device.close();
        });
    }
}

#[test]
fn loads_that_share_a_pool_of_one_buffer_all_end() {
    let (image, bytes) = model();
    let reader = open(&image, Faults::default());
    let plan = plan(&reader);
    let shared = Arc::new((reader, plan, bytes));
    explore(move || {
        let (shared, pool) = (shared.clone(), Arc::new(Pool::new(BUFFER)));
        let one_load = |shared: &(Reader<MemorySource>, ReadPlan, Vec<u8>), pool: &Pool<Buffer>| {
            let device = Async::new(&shared.1, 0);
            run(&shared.0, &shared.1, &device, pool, 2).unwrap();
            assert_eq!(device.seen_by_caller(), [&shared.2[..]]);
            device.close();
        };
        let other = {
            let (shared, pool) = (shared.clone(), pool.clone());
            thread::spawn(move || one_load(&shared, &pool))
        };
        one_load(&shared, &pool);
        other.join().unwrap();
        assert!(pool.usage().peak_bytes <= BUFFER);
    });
}

#[test]
fn after_a_failure_nothing_is_in_flight_and_no_buffer_is_lost() {
    for (fail_read, fail_copy) in [(3, 0), (5, 0), (0, 1), (0, 4)] {
        let (image, _) = model();
        let plan = plan(&open(&image, Faults::default()));
        explore(move || {
            let reader = open(&image, Faults { fail_read, ..Faults::default() });
            let (device, pool) = (Async::new(&plan, fail_copy), Pool::new(2 * BUFFER));
            run(&reader, &plan, &device, &pool, 2).unwrap_err();
            device.seen_by_caller();
            assert_eq!(device.in_flight(), 0);
            pool.clear();
            assert_eq!(pool.usage().bytes, 0);
            device.close();
        });
    }
}

#[test]
fn copies_that_fail_after_their_load_keep_no_other_load_from_ending() {
    let (image, bytes) = model();
    let reader = open(&image, Faults::default());
    let plan = plan(&reader);
    let shared = Arc::new((reader, plan, bytes));
    for buffers in [1, 2] {
        let shared = shared.clone();
        explore(move || {
            let pool = Arc::new(Pool::new(buffers * BUFFER));
            let failing = {
                let (shared, pool) = (shared.clone(), pool.clone());
                thread::spawn(move || {
                    let device = Async { fail_event: 6, ..Async::new(&shared.1, 0) };
                    run(&shared.0, &shared.1, &device, &pool, 2).unwrap();
                    device.close();
                })
            };
            let device = Async::new(&shared.1, 0);
            run(&shared.0, &shared.1, &device, &pool, 2).unwrap();
            assert_eq!(device.seen_by_caller(), [&shared.2[..]]);
            failing.join().unwrap();
            device.close();
            pool.clear();
            assert_eq!(pool.usage().bytes, 0);
        });
    }
}

#[test]
fn who_waits_for_memory_that_then_is_refused_wakes() {
    let plan = plan(&open(&model().0, Faults::default()));
    let check = move || {
        let pool = Arc::new(Pool::<Buffer>::new(BUFFER));
        let (able, unable) = (Async::new(&plan, 0), Async { fail_stage: true, ..Async::new(&plan, 0) });
        let other = {
            let pool = pool.clone();
            thread::spawn(move || drop(pool.acquire(&unable, BUFFER)))
        };
        drop(pool.acquire(&able, BUFFER).unwrap());
        other.join().unwrap();
    };
    shuttle::check_dfs(check, None);
}

#[test]
fn each_piece_of_work_is_done_once_in_every_interleaving() {
    shuttle::check_dfs(
        || {
            let (work, done) = (Work::new(0..3), Mutex::new(Vec::new()));
            let take_all = || {
                while let Some(item) = work.next() {
                    done.lock().unwrap().push(item);
                }
                Ok(())
            };
            run_threads(2, take_all).unwrap();
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2]);
        },
        None,
    );
}
