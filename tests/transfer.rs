//! The transfer engine on a device whose queued copies run only when somebody waits for them: what the engine forgets
//! to wait for stays undone, and a buffer written to while a copy still reads it is caught.

mod common;

use std::{
    mem,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, ThreadId},
    time::Duration,
};

use common::{models, packed, packed_by_default, settings, tensor};
use flashpack::{
    Error, ErrorKind, Progress, Reader, Result,
    device::{Device, Staging, pool::Pool, transfer},
    format::DType,
    io::{
        Source,
        memory::{Faults, MemorySource},
        read::ChunkReader,
    },
    numa::Node,
    plan::{Cut, Ignore, Memory, Place, ReadPlan, Readers, Selection, Verify},
    stats::{Clock, Limit, Report, Stage},
};
use proptest::prelude::*;

/// Memories, a caller's stream, and copies that run late.
#[derive(Default)]
struct LateDevice {
    /// The thread whose stream it is that waits.
    caller: Option<ThreadId>,
    memories: Arc<Mutex<Vec<Vec<u8>>>>,
    caller_waits_for: Mutex<Vec<LateStream>>,
    staged: AtomicUsize,
    copied: AtomicUsize,
    /// The n-th staging buffer or copy, counted from 1, fails; 0: none.
    fail_stage: usize,
    fail_copy: usize,
    /// The n-th copy panics.
    panic_at: usize,
    /// What stands for the copies of the n-th buffer tells of a failure, though only later.
    fail_event: usize,
    /// Nobody can tell when copies end.
    fail_drain: bool,
    marked: AtomicUsize,
    streams: Mutex<Vec<LateStream>>,
    freed_too_early: Arc<AtomicUsize>,
    /// Where new staging memory lies.
    node: Option<Node>,
    /// How long a wait for copies takes.
    delay: Duration,
    /// Looks for staging memory. Whoever watches these words cancels at the second.
    looks: AtomicUsize,
    words: [AtomicI64; 3],
}

#[derive(Clone, Default)]
struct LateStream {
    queue: Arc<Mutex<Vec<Copy>>>,
    memories: Arc<Mutex<Vec<Vec<u8>>>>,
}

struct Copy {
    from: Arc<Vec<u8>>,
    range: Range<usize>,
    memory: usize,
    offset: usize,
}

struct LateStaging {
    /// Queued copies hold it, too: as long as they do, nobody can write to it.
    bytes: Arc<Vec<u8>>,
    node: Option<Node>,
    busy: Option<LateStream>,
    event_failed: bool,
    delay: Duration,
    freed_too_early: Arc<AtomicUsize>,
}

impl Drop for LateStaging {
    fn drop(&mut self) {
        // As the real one does before it goes.
        let _ = self.wait_idle();
        let readers = Arc::strong_count(&self.bytes) - 1;
        self.freed_too_early.fetch_add(readers, Ordering::Relaxed);
    }
}

impl LateStream {
    fn run(&self) {
        for Copy { from, range, memory, offset } in mem::take(&mut *self.queue.lock().unwrap()) {
            let mut memories = self.memories.lock().unwrap();
            memories[memory][offset..offset + range.len()].copy_from_slice(&from[range]);
        }
    }
}

impl LateDevice {
    fn new(plan: &ReadPlan) -> Self {
        let room = |memory: &Memory| match *memory {
            Memory::Buffer(bytes) => vec![0xAA; usize::try_from(bytes).unwrap()],
            Memory::Mapping => panic!("staged plans map nothing"),
        };
        let memories = Arc::new(Mutex::new(plan.memory.iter().map(room).collect()));
        Self { caller: Some(thread::current().id()), memories, ..Self::default() }
    }

    /// What the caller's stream sees once it gets to run.
    fn seen_by_caller(&self) -> Vec<Vec<u8>> {
        self.caller_waits_for.lock().unwrap().iter().for_each(LateStream::run);
        self.memories.lock().unwrap().clone()
    }

    fn in_flight(&self) -> usize {
        self.streams.lock().unwrap().iter().map(|stream| stream.queue.lock().unwrap().len()).sum()
    }
}

fn nth_fails(counter: &AtomicUsize, nth: usize, what: &str) -> Result<()> {
    if counter.fetch_add(1, Ordering::Relaxed) + 1 == nth {
        return Err(Error::new(ErrorKind::Internal, format!("{what} {nth} failed")));
    }
    Ok(())
}

impl Device for LateDevice {
    type Staging = LateStaging;
    type Stream = LateStream;
    type Entered = ();

    fn staging_node(&self) -> Option<Node> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        self.words[2].store(i64::from(looks > 1), Ordering::Relaxed);
        self.node
    }

    fn enter(&self) -> Result<()> {
        Ok(())
    }

    fn stage(&self, bytes: usize) -> Result<LateStaging> {
        nth_fails(&self.staged, self.fail_stage, "staging buffer")?;
        Ok(LateStaging {
            bytes: Arc::new(vec![0; bytes]),
            node: self.node,
            busy: None,
            event_failed: false,
            delay: self.delay,
            freed_too_early: self.freed_too_early.clone(),
        })
    }

    fn stream(&self) -> Result<LateStream> {
        let stream = LateStream { queue: Arc::default(), memories: self.memories.clone() };
        self.streams.lock().unwrap().push(stream.clone());
        Ok(stream)
    }

    fn copy(
        &self,
        stream: &LateStream,
        staging: &LateStaging,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()> {
        nth_fails(&self.copied, self.fail_copy, "copy")?;
        assert!(self.copied.load(Ordering::Relaxed) != self.panic_at, "the driver lacks a function");
        let offset = usize::try_from(offset).unwrap();
        stream.queue.lock().unwrap().push(Copy { from: staging.bytes.clone(), range, memory, offset });
        Ok(())
    }

    fn mark_busy(&self, stream: &LateStream, staging: &mut LateStaging) -> Result<()> {
        staging.busy = Some(stream.clone());
        staging.event_failed = self.marked.fetch_add(1, Ordering::Relaxed) + 1 == self.fail_event;
        Ok(())
    }

    fn drain(&self, stream: &LateStream) -> Result<()> {
        if self.fail_drain {
            return Err(event_failed());
        }
        stream.run();
        Ok(())
    }

    fn join(&self) -> Result<()> {
        assert_eq!(self.caller, Some(thread::current().id()), "only the calling thread touches its stream");
        self.caller_waits_for.lock().unwrap().extend(self.streams.lock().unwrap().iter().cloned());
        Ok(())
    }
}

fn event_failed() -> Error {
    Error::new(ErrorKind::Internal, "the event failed")
}

impl Staging for LateStaging {
    fn bytes(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.bytes).expect("a buffer is written to only after its copies")
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn node(&self) -> Option<Node> {
        self.node
    }

    fn is_idle(&mut self) -> Result<bool> {
        if self.event_failed { Err(event_failed()) } else { Ok(Arc::get_mut(&mut self.bytes).is_some()) }
    }

    fn wait_idle(&mut self) -> Result<()> {
        if let Some(stream) = self.busy.take() {
            if self.event_failed {
                stream.run();
                return Err(event_failed());
            }
            thread::sleep(self.delay);
            stream.run();
        }
        Ok(())
    }
}

fn run<S: Source>(
    reader: &Reader<S>,
    plan: &ReadPlan,
    device: &LateDevice,
    pool: &Pool<LateStaging>,
    readers: Readers,
) -> Result<()> {
    run_timed(reader, plan, device, pool, readers, &Clock::default())
}

fn run_timed<S: Source>(
    reader: &Reader<S>,
    plan: &ReadPlan,
    device: &LateDevice,
    pool: &Pool<LateStaging>,
    readers: Readers,
    clock: &Clock,
) -> Result<()> {
    let progress = Progress::SILENT;
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock };
    transfer::transfer(&chunks, &plan.tasks, device, pool, readers)
}

/// Twelve pieces of 64 KiB and change.
fn model() -> Vec<u8> {
    packed_by_default(&[
        tensor("large", DType::Float32, &[400, 400]),
        tensor("medium", DType::Bfloat16, &[177, 333]),
        tensor("small", DType::Uint8, &[5]),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_device_gets_the_same_slices_as_the_host(
        from in 0_u64..300,
        columns in 1_u64..100,
        rows in 1_u64..400,
        verify in prop::sample::select(vec![Verify::Never, Verify::Whole]),
        chunk in prop::sample::select(vec![5000_u64, 64 << 10, 1 << 20]),
    ) {
        let reader = Reader::new(MemorySource::new(model())).unwrap();
        let names = ["large", "medium"].map(str::to_owned);
        let cut = |tensor, dim, range| Cut { tensor, dim, range };
        let cuts = [cut(0, 1, from..from + columns), cut(0, 0, 0..rows), cut(1, 1, 1..columns)];
        let selection = Selection::Slices { names: &names, cuts: &cuts };
        let staged = settings(Place::Device, verify, 2, chunk);
        let plan = ReadPlan::new(reader.index(), selection, staged).unwrap();
        let expected = common::execute(&reader, &plan).unwrap();
        let device = LateDevice::new(&plan);
        run(&reader, &plan, &device, &Pool::new(1 << 30), plan.readers).unwrap();
        prop_assert_eq!(device.seen_by_caller(), expected);
    }

    #[test]
    fn the_device_gets_what_the_host_would(
        models in models(),
        keep in prop::collection::vec(any::<bool>(), 12),
        align in prop::sample::select(vec![0_u64, 128, 4096]),
        verify in prop::sample::select(vec![Verify::Never, Verify::Whole, Verify::Everything]),
        chunk in prop::sample::select(vec![512_u64, 4096, 1 << 20]),
        threads in 1_usize..4,
        in_place in any::<bool>(),
    ) {
        let reader = Reader::new(MemorySource::new(packed(&models, align))).unwrap();
        let kept: Vec<_> = models.iter().zip(keep).filter(|(_, keep)| *keep).map(|(tensor, _)| tensor).collect();
        let names: Vec<String> = kept.iter().map(|tensor| tensor.spec.name.clone()).collect();
        let place = if in_place { Place::GivenDevice } else { Place::Device };
        let plan =
            ReadPlan::new(reader.index(), Selection::Names(&names), settings(place, verify, threads, chunk)).unwrap();
        let device = LateDevice::new(&plan);
        let pool = Pool::new(64 << 20);
        run(&reader, &plan, &device, &pool, Readers::fixed(threads)).unwrap();
        let memories = device.seen_by_caller();
        for (view, tensor) in plan.views.iter().zip(kept) {
            let start = usize::try_from(view.offset).unwrap();
            prop_assert_eq!(&memories[view.memory][start..start + tensor.bytes.len()], &tensor.bytes[..]);
        }
    }
}

#[test]
fn the_pool_stays_within_its_limit_and_is_reused() {
    let reader = Reader::new(MemorySource::new(model())).unwrap();
    let everything = Ignore::default();
    let staged = settings(Place::Device, Verify::Never, 3, 64 << 10);
    let plan = ReadPlan::new(reader.index(), Selection::Except(&everything), staged).unwrap();
    assert!(plan.tasks.len() >= 12);
    let pool = Pool::new(2 << 20); // two buffers of the smallest size, for three threads
    for _ in 0..3 {
        let device = LateDevice::new(&plan);
        run(&reader, &plan, &device, &pool, Readers::fixed(2)).unwrap();
        assert!(pool.usage().peak_bytes <= 2 << 20, "{:?}", pool.usage());
        device.seen_by_caller();
    }
    assert!(pool.usage().bytes > 0, "buffers are kept for the next load");
    assert_eq!((pool.most(1 << 20), pool.most(8 << 20)), (2, 1));
    pool.set_limit(1 << 20);
    assert!(pool.usage().bytes <= 1 << 20, "{:?}", pool.usage());
    pool.set_limit(3 << 20);
    let device = LateDevice::new(&plan);
    let held = [pool.acquire(&device, 1 << 20).unwrap(), pool.acquire(&device, 1 << 20).unwrap()];
    pool.set_limit(0);
    drop(held);
    assert_eq!(pool.usage().bytes, 0, "what is given back beyond the limit goes");
    pool.set_limit(2 << 20);
    loads(&reader, &plan, &pool);
    pool.clear();
    assert_eq!(pool.usage().bytes, 0);
}

#[test]
fn a_load_that_waits_for_memory_of_another_can_be_cancelled() {
    let reader = Reader::new(MemorySource::new(model())).unwrap();
    let everything = Ignore::default();
    let staged = settings(Place::Device, Verify::Never, 1, 64 << 10);
    let plan = ReadPlan::new(reader.index(), Selection::Except(&everything), staged).unwrap();
    let pool = Pool::new(1 << 20);
    let held = pool.acquire(&LateDevice::default(), 1 << 20).unwrap();
    let device = LateDevice::new(&plan);
    let outcome = thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        scope.spawn(move || {
            let _ = end.recv_timeout(Duration::from_secs(60)); // so that a load that goes on waiting fails
            drop(held);
        });
        let load = || run(&reader, &plan, &device, &pool, Readers::fixed(1));
        let outcome = Progress::new(&device.words).watch(load);
        drop(ended);
        outcome
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn buffers_of_the_node_at_hand_come_first_and_others_when_the_pool_is_full() {
    const BYTES: usize = 1 << 20;
    let pool = Pool::new(2 * BYTES);
    let on = |node| LateDevice { node: Some(Node(node)), ..LateDevice::default() };
    let (first, second, anywhere) = (on(0), on(1), LateDevice::default());
    let taken = |device: &LateDevice| pool.try_acquire(device, BYTES).unwrap();
    for _ in 0..3 {
        for device in [&first, &second] {
            assert_eq!(taken(device).unwrap().node(), device.node);
        }
    }
    assert!(taken(&anywhere).is_some());
    let staged = [&first, &second, &anywhere].map(|device| device.staged.load(Ordering::Relaxed));
    assert_eq!((staged, pool.usage().bytes), ([1, 1, 0], 2 * BYTES));
    let held = taken(&first).unwrap();
    assert_eq!(taken(&first).unwrap().node(), second.node, "a buffer far away is better than none");
    drop(held);
}

#[test]
fn waiting_for_a_slow_device_is_counted_and_named() {
    let reader = Reader::new(MemorySource::new(model())).unwrap();
    let everything = Ignore::default();
    let staged = settings(Place::Device, Verify::Never, 1, 64 << 10);
    let plan = ReadPlan::new(reader.index(), Selection::Except(&everything), staged).unwrap();
    let delay = Duration::from_millis(20);
    let device = LateDevice { delay, ..LateDevice::new(&plan) };
    let (pool, clock) = (Pool::new(64 << 20), Clock::default());
    run_timed(&reader, &plan, &device, &pool, Readers::fixed(1), &clock).unwrap();
    let waits = u32::try_from(plan.tasks.len() - transfer::DEPTH).unwrap();
    assert!(waits > 0, "the first buffers need no wait");
    assert!(clock.spent(Stage::Device) >= delay * waits, "{clock:?}");
    assert!(!clock.spent(Stage::Read).is_zero() && clock.spent(Stage::Hash).is_zero());
    let report = Report { bytes: plan.read_bytes(), threads: 1, ..Report::default() };
    assert_eq!(report.with_times(&clock, Duration::from_secs(1)).limit(), Some(Limit::DeviceLink));
}

#[test]
fn after_any_failure_nothing_is_in_flight_and_the_pool_works_on() {
    let everything = Ignore::default();
    let pool = Pool::new(16 << 20);
    let attempt = |faults: Faults, fail_stage: usize, fail_copy: usize, threads: usize| {
        let reader = Reader::new(MemorySource::with_faults(model(), faults)).unwrap();
        let staged = settings(Place::Device, Verify::Never, threads, 64 << 10);
        let plan = ReadPlan::new(reader.index(), Selection::Except(&everything), staged).unwrap();
        let device = LateDevice { fail_stage, fail_copy, ..LateDevice::new(&plan) };
        let outcome = run(&reader, &plan, &device, &pool, Readers::fixed(threads));
        (outcome, device)
    };
    for threads in [1, 3] {
        for nth in 1..=8 {
            let (read, _) = attempt(Faults { fail_read: nth as u64 + 1, ..Faults::default() }, 0, 0, threads);
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Io);
            let (copy, _) = attempt(Faults::default(), 0, nth, threads);
            assert_eq!(copy.unwrap_err().kind(), ErrorKind::Internal);
        }
        pool.clear();
        let (stage, _) = attempt(Faults::default(), 1, 0, threads);
        assert_eq!(stage.unwrap_err().kind(), ErrorKind::Internal);
        let (fine, _) = attempt(Faults::default(), 0, 0, threads);
        fine.unwrap();
    }
    pool.clear();
    assert_eq!(pool.usage().bytes, 0, "no buffer was lost");
}

fn everything(threads: usize) -> (Reader<MemorySource>, ReadPlan) {
    let reader = Reader::new(MemorySource::new(model())).unwrap();
    let staged = settings(Place::Device, Verify::Never, threads, 64 << 10);
    let plan = ReadPlan::new(reader.index(), Selection::Except(&Ignore::default()), staged).unwrap();
    (reader, plan)
}

fn loads(reader: &Reader<MemorySource>, plan: &ReadPlan, pool: &Pool<LateStaging>) {
    let (expected, device) = (common::execute(reader, plan).unwrap(), LateDevice::new(plan));
    run(reader, plan, &device, pool, plan.readers).unwrap();
    assert_eq!(device.seen_by_caller(), expected);
}

#[test]
fn copies_that_fail_after_their_load_cost_a_buffer_and_no_later_load() {
    for room in [1, 2, 8] {
        let (reader, plan) = everything(1);
        let pool = Pool::new(room << 20);
        for _ in 0..3 {
            let device = LateDevice { fail_event: plan.tasks.len(), ..LateDevice::new(&plan) };
            run(&reader, &plan, &device, &pool, Readers::fixed(1)).unwrap();
            device.seen_by_caller();
            loads(&reader, &plan, &pool);
        }
        pool.clear();
        assert_eq!(pool.usage().bytes, 0);
    }
}

#[test]
fn a_panic_leaves_no_copy_behind_and_loses_no_buffer() {
    let (reader, plan) = everything(3);
    let pool = Pool::new(3 << 20);
    for (threads, panic_at) in [(1, 1), (1, 3), (1, 7), (3, 1), (3, 5)] {
        let device = LateDevice { panic_at, ..LateDevice::new(&plan) };
        let load = || run(&reader, &plan, &device, &pool, Readers::fixed(threads));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
        assert!(!matches!(outcome, Ok(Ok(()))), "copy {panic_at} panics");
        device.seen_by_caller();
        assert_eq!(device.in_flight(), 0);
        loads(&reader, &plan, &pool);
        pool.clear();
        assert_eq!(pool.usage().bytes, 0);
        assert_eq!(device.freed_too_early.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn buffers_whose_copies_nobody_can_wait_for_are_never_used_or_freed_again() {
    let (reader, plan) = everything(1);
    let pool = Pool::new(3 << 20);
    let device = LateDevice { fail_copy: 2, fail_drain: true, ..LateDevice::new(&plan) };
    run(&reader, &plan, &device, &pool, Readers::fixed(1)).unwrap_err();
    assert!(device.in_flight() > 0);
    assert_eq!(pool.usage().bytes, 0, "the pool has room for others");
    loads(&reader, &plan, &pool);
    pool.clear();
    assert_eq!(device.freed_too_early.load(Ordering::Relaxed), 0);
}
