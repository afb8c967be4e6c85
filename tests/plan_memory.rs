//! What a load needs beside the tensors does not grow with the model: plans of 1 to 40 GB, made and weighed. No file
//! is needed, a plan is a pure function of an index.

use std::{
    alloc::{GlobalAlloc, Layout as Allocation, System},
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use flashpack::{
    device::{pool, transfer},
    format::{
        DType, Index,
        checksum::{Algorithm, CHUNK_BYTES, Digest},
        layout::{Layout, Order, TensorSpec},
    },
    plan::{Chunk, Ignore, Place, ReadPlan, Readers, Selection, Settings, Verify},
};

/// The system's allocator, counting.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is the system allocator's; the counters only look on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Allocation) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Allocation) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GB: u64 = 1_000_000_000;
/// Bytes of plan for each GB of model, at most: a MiB of payload takes a chunk, its digest and a part, two a task.
const PLAN_BYTES_PER_GB: usize = 160 << 10;
/// The same at the most while the plan is being made.
const PLANNING_BYTES_PER_GB: usize = 176 << 10;

/// Bytes that are held when `work` is over, and the most there were, beyond those before.
fn weigh<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let made = work();
    let held = HELD.load(Ordering::Relaxed) - before;
    (made, held, PEAK.load(Ordering::Relaxed) - before)
}

/// A model of `size` GB, two thirds in bfloat16 matrices of 64 MB, one third in float32 vectors of 4 MB.
fn index(size: u64) -> Index {
    let spec = |name: String, dtype, elems| TensorSpec { name, dtype, shape: vec![elems], tied_to: None };
    let large = (0..size * 10).map(|n| spec(format!("layers.{n}.weight"), DType::Bfloat16, 32_000_000));
    let small = (0..size * 90).map(|n| spec(format!("layers.{n}.bias"), DType::Float32, 1_000_000));
    let specs: Vec<_> = large.chain(small).collect();
    let layout = Layout::new(&specs, Order::LargestFirst, 128, BTreeMap::new()).unwrap();
    let chunks = layout.payload_bytes().div_ceil(CHUNK_BYTES);
    let index = layout.into_index(Algorithm::Xxh3, (0..chunks).map(Digest::Xxh3).collect());
    assert!(index.payload_bytes().abs_diff(size * GB) < size * GB / 100);
    index
}

/// What must not depend on the size: readers that begin, bytes of a staging buffer, the largest chunk, the largest task.
fn shape_of(plan: &ReadPlan) -> (usize, usize, u64, u64) {
    let chunk = plan.tasks.iter().flatten().map(Chunk::bytes).max().unwrap();
    let task = plan.tasks.iter().map(|task| task.iter().map(Chunk::bytes).sum()).max().unwrap();
    assert!(plan.readers.most <= 128);
    (plan.readers.first, transfer::staging_bytes(&plan.tasks), chunk, task)
}

#[test]
fn plans_of_1_to_40_gb_need_the_same_threads_and_staging_and_little_memory() {
    let everything = Ignore::default();
    let indices: Vec<_> = [1, 4, 10, 40].map(|size| (size, index(size))).into();
    for place in [Place::Host, Place::Device] {
        for verify in [Verify::Never, Verify::Whole] {
            let readers = Readers { first: 16, most: 128 };
            let read_chunk_bytes = if place.is_staged() { transfer::FAR_TASK_BYTES } else { 8 << 20 };
            let settings =
                Settings { place, verify, readers, read_chunk_bytes, direct: true, bridged_bytes: 0 };
            let mut shapes = Vec::new();
            for (size, index) in &indices {
                let plan = || ReadPlan::new(index, Selection::Except(&everything), settings).unwrap();
                let (plan, held, peak) = weigh(plan);
                let gigabytes = usize::try_from(*size).unwrap();
                println!("{place:?} {verify:?} {size} GB: {held} bytes of plan, {peak} at most");
                assert!(held <= gigabytes * PLAN_BYTES_PER_GB, "{place:?} {verify:?} {size} GB: {held}");
                assert!(peak <= gigabytes * PLANNING_BYTES_PER_GB, "{place:?} {verify:?} {size} GB: {peak}");
                assert!(plan.read_bytes() >= size * GB * 99 / 100);
                shapes.push(shape_of(&plan));
            }
            assert!(shapes.iter().all(|shape| *shape == shapes[0]), "{place:?} {verify:?}: {shapes:?}");
            let (first, staging, chunk, task) = shapes[0];
            assert_eq!(first, 16);
            assert!(chunk <= task && task <= read_chunk_bytes);
            assert!(4 * staging <= pool::LIMIT_BYTES, "four of the largest tasks can be under way");
        }
    }
}
