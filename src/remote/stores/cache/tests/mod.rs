//! Loads through a cache, of objects that count what is fetched.

mod damage;
mod processes;
mod room;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use super::{blocks::to_usize, *};
use crate::error::Error;

const MIB: u64 = 1 << 20;

/// An object in memory.
#[derive(Debug)]
struct Fake {
    bytes: Vec<u8>,
    requests: AtomicU64,
    fetched: AtomicU64,
    /// Requests fail.
    fails: AtomicBool,
    /// Answers are wrong in their first byte.
    lies: AtomicBool,
}

impl Fake {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let (requests, fetched, fails, lies) = Default::default();
        Arc::new(Self { bytes, requests, fetched, fails, lies })
    }

    /// Bytes that no other number and no other place has.
    fn numbered(number: u64, bytes: u64) -> Arc<Self> {
        let word = |place: u64| ((place << 8) + number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let page: Vec<u8> = (0..512).flat_map(word).collect();
        let mut all = page.repeat(to_usize(bytes.div_ceil(4096)));
        for (place, page) in all.chunks_mut(4096).enumerate() {
            page[..8].copy_from_slice(&word(512 + place as u64));
        }
        all.truncate(to_usize(bytes));
        Self::new(all)
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Object for Fake {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::argument("the store is gone"));
        }
        let mut rest = &self.bytes[to_usize(offset)..];
        for buffer in &mut *buffers {
            let (now, later) = rest.split_at(buffer.len());
            buffer.copy_from_slice(now);
            self.fetched.fetch_add(now.len() as u64, Ordering::Relaxed);
            rest = later;
        }
        buffers[0][0] ^= u8::from(self.lies.load(Ordering::Relaxed));
        Ok(())
    }

    fn distrust(&self, _: u64, _: u64) {}

    fn traffic(&self) -> Traffic {
        let fetched_bytes = self.fetched.load(Ordering::Relaxed);
        Traffic { requests: self.requests(), fetched_bytes, ..Traffic::default() }
    }
}

fn cache(folder: &Path, limit: Option<u64>) -> Cache {
    Cache { folder: folder.to_owned(), limit, budget: Budget::default() }
}

/// `object` behind the cache in `folder`, as `name` of the store.
fn open(folder: &Path, name: &str, object: &Arc<Fake>) -> Arc<dyn Object> {
    cached(Arc::clone(object) as _, &format!("s3://bucket/{name}"), "\"1\"", &cache(folder, None))
}

/// Reads `range` and compares it.
fn check(opened: &dyn Object, object: &Fake, range: Range<u64>) {
    let mut bytes = vec![0; to_usize(range.end - range.start)];
    let third = bytes.len() / 3;
    let (first, second) = bytes.split_at_mut(third);
    opened.read_exact_at(&mut [first, second], range.start).unwrap();
    assert!(bytes == object.bytes[to_usize(range.start)..to_usize(range.end)], "{range:?}");
}

/// Loads all of `object` as `name`, in ranges of `step`, and says how many bytes were fetched.
fn load(folder: &Path, name: &str, object: &Arc<Fake>, step: u64) -> u64 {
    let before = object.traffic().fetched_bytes;
    let opened = open(folder, name, object);
    for start in (0..object.len()).step_by(to_usize(step)) {
        check(&*opened, object, start..(start + step).min(object.len()));
    }
    object.traffic().fetched_bytes - before
}

/// The files of the only entry: data and map.
fn files(folder: &Path) -> [PathBuf; 2] {
    let own = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<_> = fs::read_dir(own).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some());
    files.sort();
    files.try_into().unwrap()
}

#[test]
fn the_second_load_fetches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [("whole", 8 * MIB), ("odd", 5 * MIB + 77)] {
        let object = Fake::numbered(1, bytes);
        assert_eq!(load(folder.path(), name, &object, 3 * MIB), bytes);
        assert_eq!(load(folder.path(), name, &object, 3 * MIB), 0);
        assert_eq!(load(folder.path(), name, &object, 777_777), 0, "parts of blocks");
        let opened = open(folder.path(), name, &object);
        check(&*opened, &object, 5..bytes);
        assert_eq!(opened.traffic().cached_bytes, bytes - 5);
    }
}

#[test]
fn reads_of_several_threads_that_share_blocks_fill_them() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 9 * MIB + 13);
    let opened = open(folder.path(), "a", &object);
    thread::scope(|scope| {
        for first in 0..3 {
            let (opened, object) = (&*opened, &*object);
            scope.spawn(move || {
                for start in (0..object.len()).step_by(100_003).skip(first).step_by(3) {
                    check(opened, object, start..(start + 100_003).min(object.len()));
                }
            });
        }
    });
    drop(opened);
    assert_eq!(load(folder.path(), "a", &object, MIB), 0);
}

#[test]
fn only_what_is_missing_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 12 * MIB);
    let opened = open(folder.path(), "a", &object);
    check(&*opened, &object, 4 * MIB..7 * MIB);
    check(&*opened, &object, 9 * MIB..9 * MIB + 5);
    drop(opened);
    let (opened, before) = (open(folder.path(), "a", &object), object.traffic());
    check(&*opened, &object, 0..12 * MIB);
    let after = opened.traffic();
    assert_eq!((after.requests - before.requests, after.cached_bytes), (2, 3 * MIB));
    assert_eq!(after.fetched_bytes - before.fetched_bytes, 9 * MIB);
}

#[test]
fn a_gap_that_costs_less_than_a_request_is_fetched_with_what_surrounds_it() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 8 * MIB);
    let opened = open(folder.path(), "a", &object);
    check(&*opened, &object, 3 * MIB..4 * MIB);
    drop(opened);
    assert_eq!(load(folder.path(), "a", &object, 8 * MIB), 8 * MIB);
    assert_eq!(object.requests(), 2);
}

#[test]
fn other_versions_and_objects_have_entries_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    load(folder.path(), "a", &object, MIB);
    let cache = cache(folder.path(), None);
    for (number, address, version, bytes) in [
        (2, "s3://bucket/a", "\"2\"", MIB),
        (3, "s3://bucket/b", "\"1\"", MIB),
        (4, "s3://bucket/a", "\"1\"", MIB + 1),
    ] {
        let other = Fake::numbered(number, bytes);
        check(&*cached(Arc::clone(&other) as _, address, version, &cache), &other, 0..bytes);
        assert_eq!(other.traffic().fetched_bytes, bytes);
    }
    assert_eq!(load(folder.path(), "a", &object, MIB), 0);
}

#[test]
fn a_signature_does_not_make_it_another_object_and_the_rest_of_a_query_does() {
    for (url, address) in [
        (
            "https://user:secret@host/a?X-Amz-Signature=1&X-Amz-Date=2&versionId=3#x",
            "https://host/a?versionId=3",
        ),
        ("https://host/a?Expires=1&Signature=2&Key-Pair-Id=3", "https://host/a?"),
        ("https://host/a?sv=1&sig=2&se=3", "https://host/a?"),
        ("https://host/get?sv=1&file=2&token=3", "https://host/get?sv=1&file=2&token=3"),
        ("s3://bucket/a", "s3://bucket/a?"),
    ] {
        assert_eq!(unsigned(url), address);
    }
}

#[test]
fn small_objects_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, BLOCK_BYTES);
    load(folder.path(), "a", &object, MIB);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_lies_beyond_the_end_is_the_objects_to_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    load(folder.path(), "a", &object, MIB);
    let opened = open(folder.path(), "a", &object);
    object.fails.store(true, Ordering::Relaxed);
    for offset in [MIB - 1, MIB, u64::MAX] {
        assert!(opened.read_exact_at(&mut [&mut [0; 2]], offset).is_err());
    }
}
