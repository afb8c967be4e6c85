//! What reading a hostile footer costs, and that a lack of memory for it is an error and never an abort.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env, fs,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use flashpack::{ErrorKind, Reader, format::footer, io::memory::MemorySource};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The system's allocator, counting what malloc takes: eight bytes more than asked, in units of 16, at least 32.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Allocations of just this size are the library's question, which is over when the parser starts: not counted.
static QUESTION: AtomicUsize = AtomicUsize::new(usize::MAX);
static QUESTIONS: AtomicUsize = AtomicUsize::new(0);

fn taken(layout: Layout) -> usize {
    if layout.size() == QUESTION.load(Ordering::Relaxed) {
        return 0;
    }
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: all is the system allocator's; the counters only look on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(taken(layout), Ordering::Relaxed) + taken(layout);
        QUESTIONS.fetch_add(usize::from(taken(layout) == 0), Ordering::Relaxed);
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of each footer here: just past a power of two of elements, where lists that double waste most.
const FOOTER_BYTES: usize = 1 << 20;
/// The library asks for this much before it parses: `MEMORY_PER_BYTE` of src/format/footer/mod.rs.
const MEMORY_PER_BYTE: usize = 16;
const LIMIT: &str = "FLASHPACK_TEST_MIB";

fn footer_with(index: &str, more: &str) -> String {
    format!(
        r#"{{"format":"flashpack_v3","target_dtype":"int8","align_bytes":0,"total_elems":0,"index":[{index}]{more}}}"#
    )
}

/// `one` of 0, of 1, ... until the list has [`FOOTER_BYTES`].
fn repeated(one: impl Fn(usize) -> String) -> String {
    let mut list = one(0);
    for number in 1.. {
        if list.len() > FOOTER_BYTES {
            break;
        }
        list.push(',');
        list.push_str(&one(number));
    }
    list
}

fn record(number: usize, shape: &str) -> String {
    format!(r#"{{"name":"{number:x}","shape":[{shape}],"offset":0,"length":0}}"#)
}

fn strings(value: &str) -> String {
    let entries = repeated(|number| format!(r#""{number:x}":"{value}""#));
    footer_with("", &format!(r#","metadata":{{{entries}}}"#))
}

fn frames(runs: &str) -> String {
    let blocks = r#"[{"dtype":"int8","offset_bytes":0,"length_bytes":1073741824,"length_elems":1073741824}]"#;
    format!(
        r#"{{"format":"flashpack_v5","align_bytes":0,"total_elems":0,"total_payload_bytes":1073741824,"macroblocks":{blocks},"index":[],"encoding":{{"chunk_bytes":4096,"frames":[{runs}]}}}}"#
    )
}

/// What a footer has much of, and the footer.
type Hostile = (&'static str, fn() -> String);

/// Footers of few bytes that become large values.
const HOSTILE: [Hostile; 7] = [
    ("a shape of many sizes", || footer_with(&record(0, &repeated(|_| "0".to_owned())), "")),
    ("many records", || footer_with(&repeated(|number| record(number, "0")), "")),
    ("many records of one name", || footer_with(&repeated(|_| record(0, "0")), "")),
    ("many strings", || strings("1")),
    ("many empty strings", || strings("")),
    ("many frames", || {
        frames(&format!(r#"{{"codec":"fixed16","lengths":[{}]}}"#, repeated(|_| "1024".to_owned())))
    }),
    ("many runs of no frames", || frames(&repeated(|_| r#"{"codec":"raw","lengths":[]}"#.to_owned()))),
];

#[test]
fn a_footer_takes_no_more_memory_than_is_asked_for_first() {
    for (what, make) in HOSTILE {
        let json = make();
        QUESTION.store(MEMORY_PER_BYTE * json.len(), Ordering::Relaxed);
        QUESTIONS.store(0, Ordering::Relaxed);
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let outcome = footer::parse(json.as_bytes(), 0).map(drop);
        let peak = PEAK.load(Ordering::Relaxed) - before;
        println!("{what}: {peak} bytes for {}; {outcome:?}", json.len());
        assert!(peak <= MEMORY_PER_BYTE * json.len(), "{what}: {peak} for {} bytes", json.len());
        assert_eq!(QUESTIONS.load(Ordering::Relaxed), 1, "the library asked for as much");
    }
}

#[test]
fn a_lack_of_memory_is_an_error() {
    let program = env::current_exe().unwrap();
    for case in 0..HOSTILE.len() {
        let (mut refused, mut read) = (0, 0);
        for mebibytes in [1, 4, 10, 24, 128] {
            let child = Command::new(&program)
                .args(["--exact", "reads_with_little_memory", "--ignored", "--nocapture", "--test-threads=1"])
                // Nothing is set aside beforehand that the limit would not see.
                .envs([("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "65536")])
                .env(LIMIT, format!("{case} {mebibytes}"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success(), "case {case}, {mebibytes} MiB: {child:?}");
            refused += usize::from(said.contains("outcome: Memory"));
            read += usize::from(said.contains("outcome: read"));
            assert!(said.contains("outcome: "), "case {case}: {said}");
        }
        assert!(refused > 1 && read > 1, "case {case}: {refused} refused, {read} read");
    }
}

#[test]
#[ignore = "limits the memory of its process: run by the test above, in one of its own"]
fn reads_with_little_memory() {
    let limit = env::var(LIMIT).unwrap();
    let (case, mebibytes) = limit.split_once(' ').unwrap();
    let json = HOSTILE[case.parse::<usize>().unwrap()].1();
    let image = [json.as_bytes(), &footer::trailer(json.as_bytes())].concat();
    let source = MemorySource::new(image);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let now = size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let old = getrlimit(Resource::As);
    let current = Some(now + mebibytes.parse::<u64>().unwrap() * (1 << 20));
    setrlimit(Resource::As, Rlimit { current, ..old }).unwrap();
    let outcome = Reader::new(source).map(drop);
    setrlimit(Resource::As, old).unwrap();
    match outcome {
        // Two records of one name are refused once they have been read.
        Ok(()) => println!("outcome: read"),
        Err(error) if error.kind() == ErrorKind::Format => println!("outcome: read"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            println!("outcome: Memory");
        }
    }
}
