//! Loads from objects of stores: which requests they make, and what becomes of damaged answers.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]

mod common;

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use common::{Tensor, check_source, execute, load, models, packed, settings, tensor};
use flashpack::{
    Error, ErrorKind, Progress, Reader, Result,
    codec::Level,
    convert::recode,
    format::{DType, layout::Order},
    io::{self, Files, Input, RemoteFile, read::ChunkReader},
    plan::{Chunk, Cut, Ignore, Place, ReadPlan, Selection, Settings, Verify},
    remote::{Object, Traffic, beside, label, names_folder, shown, url, with_suffix, within},
    stats::Clock,
};
use proptest::prelude::*;

/// An object in memory, which remembers the requests; the first answers to some of its bytes are damaged.
#[derive(Debug, Default)]
struct Stored {
    bytes: Vec<u8>,
    requests: Mutex<Vec<Range<u64>>>,
    /// A byte, and how many answers with it come with another in its place.
    damaged: Mutex<(u64, usize)>,
    distrusted: Mutex<Vec<Range<u64>>>,
}

impl Object for Stored {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let mut at = offset as usize;
        for buffer in buffers {
            buffer.copy_from_slice(&self.bytes[at..at + buffer.len()]);
            let mut damaged = self.damaged.lock().unwrap();
            if damaged.1 > 0 && (at..at + buffer.len()).contains(&(damaged.0 as usize)) {
                buffer[damaged.0 as usize - at] ^= 1;
                damaged.1 -= 1;
            }
            at += buffer.len();
        }
        self.requests.lock().unwrap().push(offset..at as u64);
        Ok(())
    }

    fn distrust(&self, offset: u64, bytes: u64) {
        self.distrusted.lock().unwrap().push(offset..offset + bytes);
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

const BRIDGED: u64 = 20_000;

fn far(verify: Verify, read_chunk_bytes: u64) -> Settings {
    Settings { bridged_bytes: BRIDGED, ..settings(Place::Host, verify, 1, read_chunk_bytes) }
}

/// A reader of the file with `tensors`, and its object, of which no request has been counted yet.
fn opened(tensors: &[Tensor]) -> (Reader<RemoteFile>, Arc<Stored>) {
    let stored = Arc::new(Stored { bytes: packed(tensors, 64), ..Stored::default() });
    let object = Arc::clone(&stored) as Arc<dyn Object>;
    let reader = Reader::new(RemoteFile::new(Path::new("s3://bucket/model.flashpack"), object)).unwrap();
    stored.requests.lock().unwrap().clear();
    (reader, stored)
}

fn three() -> Vec<Tensor> {
    ["a", "b", "c"].map(|name| tensor(name, DType::Uint8, &[3, 1 << 20])).into()
}

#[test]
fn an_object_is_a_source() {
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    let object = Arc::new(Stored { bytes: bytes.clone(), ..Stored::default() });
    check_source(&RemoteFile::new(Path::new("s3://bucket/key"), object), &bytes);
}

#[test]
fn a_task_is_one_request_and_no_byte_is_asked_for_twice() {
    let (reader, stored) = opened(&three());
    let loaded = load(&reader, Selection::Except(&Ignore::default()), far(Verify::Whole, 4 << 20)).unwrap();
    assert!(loaded.iter().zip(three()).all(|(loaded, tensor)| loaded.1 == tensor.bytes));
    let requests = stored.requests.lock().unwrap();
    let expected = [0..4 << 20, 4 << 20..8 << 20, 8 << 20..9 << 20];
    assert_eq!(*requests, expected);
}

#[test]
fn short_gaps_are_bridged_and_long_ones_are_not() {
    let (reader, stored) = opened(&three());
    let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
    for (columns, requests) in [(0..(1 << 20) - BRIDGED, 3), (0..(1 << 20) - BRIDGED - 1, 9)] {
        let cuts: Vec<Cut> = (0..3).map(|tensor| Cut { tensor, dim: 1, range: columns.clone() }).collect();
        let selection = Selection::Slices { names: &names, cuts: &cuts };
        let plan = ReadPlan::new(reader.index(), selection, far(Verify::Whole, 3 << 20)).unwrap();
        let memory = execute(&reader, &plan).unwrap();
        for (memory, tensor) in memory.iter().zip(three()) {
            let rows = tensor.bytes.chunks(1 << 20);
            let rows: Vec<u8> = rows.flat_map(|row| row[..columns.end as usize].to_vec()).collect();
            assert_eq!(*memory, rows);
        }
        let made = std::mem::take(&mut *stored.requests.lock().unwrap());
        assert_eq!(made.len(), requests, "{made:?}");
        let asked: u64 = made.iter().map(|range| range.end - range.start).sum();
        assert_eq!(asked, plan.read_bytes());
        assert!(asked <= 9 * columns.end + 6 * BRIDGED, "{asked}");
    }
}

#[test]
fn damaged_bytes_are_fetched_once_more() {
    for (times, outcome) in [(1, Ok(())), (2, Err(ErrorKind::Checksum))] {
        let (reader, stored) = opened(&three());
        *stored.damaged.lock().unwrap() = ((5 << 20) + 7, times);
        let loaded = load(&reader, Selection::Except(&Ignore::default()), far(Verify::Whole, 4 << 20));
        let right = |loaded: Vec<(String, Vec<u8>)>| {
            assert!(loaded.iter().zip(three()).all(|(loaded, tensor)| loaded.1 == tensor.bytes));
        };
        assert_eq!(loaded.map(right).map_err(|error| error.kind()), outcome);
        let distrusted = stored.distrusted.lock().unwrap();
        assert_eq!(
            (distrusted.len(), distrusted[0].clone()),
            (1, 4 << 20..8 << 20),
            "that request, and once"
        );
    }
}

#[test]
fn bytes_that_are_fetched_once_more_are_counted_once() {
    let (reader, stored) = opened(&three());
    let plan =
        ReadPlan::new(reader.index(), Selection::Except(&Ignore::default()), far(Verify::Whole, 4 << 20))
            .unwrap();
    let bytes = |task: &Vec<Chunk>| task.iter().map(Chunk::bytes).sum::<u64>();
    let total: u64 = plan.tasks.iter().map(bytes).sum();
    let (words, clock) = ([const { AtomicI64::new(0) }; 3], Clock::default());
    let (source, index, progress) = (reader.source(), reader.index(), Progress::new(&words));
    let chunks = ChunkReader { source, index, progress, clock: &clock };
    for staged in [false, true] {
        *stored.damaged.lock().unwrap() = ((6 << 20) + 7, 1);
        progress.start(total);
        let mut memory = vec![0; total as usize];
        if staged {
            for task in &plan.tasks {
                chunks.read_run(task, &mut memory[..bytes(task) as usize], &mut clock.start()).unwrap();
            }
        } else {
            io::read::read(&chunks, &plan.tasks, vec![&mut memory], plan.readers).unwrap();
        }
        assert_eq!(words[0].load(Ordering::Relaxed), total.cast_signed(), "staged: {staged}");
    }
    assert_eq!(stored.distrusted.lock().unwrap().len(), 2);
}

#[test]
fn a_task_of_frames_is_one_request_and_damaged_ones_are_fetched_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, packed] = ["plain", "packed"].map(|name| folder.path().join(name));
    let mut weights = tensor("w", DType::Bfloat16, &[4, 1 << 20]);
    weights.bytes.iter_mut().skip(1).step_by(2).for_each(|high| *high = 0x3c | *high & 0x80);
    common::pack(&plain, std::slice::from_ref(&weights), Order::Given, 64).unwrap();
    recode(&plain, &packed, Some(Level::Fast), Progress::SILENT).unwrap();
    let stored = Arc::new(Stored { bytes: std::fs::read(&packed).unwrap(), ..Stored::default() });
    let object = Arc::clone(&stored) as Arc<dyn Object>;
    let file = RemoteFile::new(Path::new("s3://bucket/model.flashpack"), object);
    let (file, index, _) = Reader::new(file).unwrap().into_parts();
    let end = index.encoding().unwrap().stored_bytes();
    let files = Files::new(Path::new("model"), vec![Input::Remote(file)], &index);
    let settings = far(Verify::Whole, 4 << 20);
    let plan = ReadPlan::new(&index, Selection::Except(&Ignore::default()), settings).unwrap();
    // One bit of a mantissa, which only a digest tells, in the first answer that has it.
    for (times, requests) in [(0, 2), (1, 3)] {
        stored.requests.lock().unwrap().clear();
        *stored.damaged.lock().unwrap() = (end - 1, times);
        let mut memory = vec![0; weights.bytes.len()];
        let (progress, clock) = (Progress::SILENT, Clock::default());
        let chunks = ChunkReader { source: &files, index: &index, progress, clock: &clock };
        io::read::read(&chunks, &plan.tasks, vec![&mut memory], plan.readers).unwrap();
        assert!(memory == weights.bytes);
        let asked = stored.requests.lock().unwrap();
        assert!(
            asked.len() == requests && asked[0].start == 0 && asked.last().unwrap().end == end,
            "{asked:?}"
        );
    }
    let distrusted = stored.distrusted.lock().unwrap();
    assert!(
        distrusted.len() == 1 && distrusted[0].end == end && distrusted[0].start > end / 3,
        "{distrusted:?}"
    );
}

#[test]
fn an_object_that_is_too_short_is_an_error() {
    let object = Arc::new(Stored { bytes: vec![0; 9], ..Stored::default() });
    let error = Reader::new(RemoteFile::new(Path::new("s3://b/k"), object)).map(drop).unwrap_err();
    assert_eq!((error.kind(), error.to_string().starts_with("s3://b/k: ")), (ErrorKind::Format, true));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_model_loads_as_from_a_file(tensors in models(), chunk in 1_u64..5000, skipped in 0..12_usize) {
        let (reader, _) = opened(&tensors);
        let names: Vec<String> = tensors.iter().map(|tensor| tensor.spec.name.clone()).collect();
        let wanted: Vec<String> =
            names.iter().enumerate().filter(|(number, _)| *number != skipped).map(|(_, name)| name.clone()).collect();
        for verify in [Verify::Never, Verify::Whole] {
            for (name, bytes) in load(&reader, Selection::Names(&wanted), far(verify, chunk)).unwrap() {
                let number = names.iter().position(|other| *other == name).unwrap();
                prop_assert!(bytes == tensors[number].bytes, "{name}");
            }
        }
    }
}

#[test]
fn urls_are_told_from_paths_and_shown_without_secrets() {
    for (path, is_url) in
        [("s3://b/k", true), ("HTTPS://h/", true), ("weights/s3:/b", false), ("://x", false)]
    {
        assert_eq!(url(Path::new(path)).is_some(), is_url, "{path}");
    }
    let signed = "https://user:word@host:8/a/model.flashpack?X-Amz-Signature=abc#x";
    assert_eq!(shown(signed), "https://host:8/a/model.flashpack");
    for (url, expected) in [
        ("s3://AKIA:wJal/K7MD/bPxR@bucket/key", "s3://bucket/key"),
        ("https://user:pa?ss#wo/rd@host:8/a?b=c", "https://host:8/a"),
        ("https://user:word", "https://user"),
        ("http://[::1]:8/a@b", "http://[::1]:8/a@b"),
        ("hf://org/repo@main/a:b", "hf://org/repo@main/a:b"),
    ] {
        assert_eq!(shown(url), expected);
    }
    assert_eq!(&*label(Path::new(signed)), Path::new("https://host:8/a/model.flashpack"));
    assert_eq!(&*label(Path::new("a?b")), Path::new("a?b"), "a file may be called so");
    assert_eq!(beside("s3://b/f/index.json?v=1", "part"), "s3://b/f/part?v=1");
    assert_eq!(with_suffix("s3://b/f?v=1", ".json"), "s3://b/f.json?v=1");
    assert_eq!(within("s3://b/f/?v=1", "part"), "s3://b/f/part?v=1");
}

#[test]
fn some_urls_can_only_name_folders() {
    for (url, expected) in [
        ("s3://bucket", true),
        ("s3://bucket/model/", true),
        ("s3://bucket/model", false),
        ("hf://org/repo", true),
        ("hf://datasets/org/repo@main", true),
        ("hf://org/repo@main/model.flashpack", false),
        ("az://container", true),
        ("az://container/blob", false),
        ("az://account.blob.core.windows.net/container", true),
        ("az://account.blob.core.windows.net/container/blob", false),
        ("https://host/model?x=/", false),
    ] {
        assert_eq!(names_folder(url), expected, "{url}");
    }
}

#[test]
fn a_missing_object_is_told_from_other_errors() {
    assert!(Error::not_found("no").is_not_found() && !Error::argument("no").is_not_found());
}
