//! Writing behind: what was fetched is copied, and a thread brings it to the disk while the load goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    ops::Range,
    process,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use super::{
    blocks::{Aligned, BLOCK_BYTES, part, to_usize},
    entry::{Entry, Piece},
    folder::Folder,
    held::{Budget, Held},
};
use crate::sync::Unpoisoned as _;

/// Bytes that are written at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// Memory of such that is kept for more.
const MOST_IDLE: usize = 2;
/// Bytes for which room is made at a time, in what all entries may take.
const ROOM_BYTES: u64 = 64 << 20;

/// Keeps what is fetched of an object. Nothing of it outlives this, which waits for what it has taken.
#[derive(Debug)]
pub(super) struct Behind {
    shared: Arc<Shared>,
    /// The process whose thread it is: there is none in a child that was forked.
    process: u32,
}

#[derive(Debug)]
struct Shared {
    entry: Arc<Entry>,
    folder: Folder,
    budget: Budget,
    state: Mutex<State>,
    /// That something of the state has changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Why nothing more is kept: the disk is full, or all entries take what they may.
    stopped: Option<String>,
    thread: Option<JoinHandle<()>>,
    /// Blocks of which there are bytes, and not all of them yet.
    partial: BTreeMap<u64, PartialBlock>,
    queue: VecDeque<(Piece, Held)>,
    /// The blocks that are being written.
    writing: Range<u64>,
    /// Memory of what is written, for more.
    idle: Vec<Aligned>,
    ended: bool,
}

/// A block, as far as it is there.
#[derive(Debug)]
struct PartialBlock {
    bytes: Vec<u8>,
    /// Sorted, and apart from each other.
    there: Vec<Range<usize>>,
    held: Held,
}

impl Behind {
    pub(super) fn new(entry: Arc<Entry>, folder: Folder, budget: Budget) -> Self {
        let (state, changed) = Default::default();
        Self { shared: Arc::new(Shared { entry, folder, budget, state, changed }), process: process::id() }
    }

    /// Whether this is the process that has begun it. A child must not even lock: a thread that it lacks may have locked.
    fn is_at_home(&self) -> bool {
        self.process == process::id()
    }

    /// Keeps what `memory` has, the bytes of the object in `range`, once the blocks that they are of are whole. What comes
    /// while there is no memory for a copy is not kept: no load waits for a disk that is slower than the network.
    pub(super) fn keep(&self, memory: &mut [&mut [u8]], range: &Range<u64>) {
        if !self.is_at_home() || self.shared.lock().stopped.is_some() {
            return;
        }
        let all = self.shared.entry.blocks;
        let within = |file: &Range<u64>| file.start - range.start..file.end - range.start;
        let whole = all.within(range);
        for block in all.touched(range).filter(|block| !whole.contains(block)) {
            let file = all.range(block);
            let file_part = file.start.max(range.start)..file.end.min(range.end);
            let bytes = part(memory, &within(&file_part)).concat();
            self.shared.add(block, to_usize(file_part.start - file.start), &bytes);
        }
        for first in whole.clone().step_by(to_usize(PIECE_BYTES / BLOCK_BYTES)) {
            let blocks = first..(first + PIECE_BYTES / BLOCK_BYTES).min(whole.end);
            let file = all.range(blocks.start).start..all.range(blocks.end - 1).end;
            let mut state = self.shared.lock();
            if let Some(held) = state.hold(&self.shared.budget, to_usize(file.end - file.start)) {
                let idle = state.idle.pop().unwrap_or_default();
                drop(state);
                self.shared.pass(Piece::copy(all, blocks, &part(memory, &within(&file)), idle), held);
            }
        }
    }

    /// Why it has stopped to keep anything, if it has.
    pub(super) fn stopped(&self) -> Option<String> {
        if self.is_at_home() { self.shared.lock().stopped.clone() } else { None }
    }

    /// Waits for all that is to be written so far.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let mut state = self.shared.lock();
        while !state.queue.is_empty() || !state.writing.is_empty() {
            state = self.shared.changed.wait(state).unwrap();
        }
    }

    /// Forgets `blocks`, also those that are yet to be written.
    ///
    /// # Errors
    /// The system's: they may be there still.
    pub(super) fn forget(&self, blocks: &Range<u64>) -> io::Result<()> {
        if self.is_at_home() {
            let mut state = self.shared.lock();
            state.drop_pending(blocks);
            while overlap(&state.writing, blocks) {
                state = self.shared.changed.wait(state).unpoisoned();
            }
        }
        self.shared.entry.forget(blocks)
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        if !self.is_at_home() {
            // What stands for a thread of the parent can be neither joined nor dropped here.
            mem::forget(Arc::clone(&self.shared));
            return;
        }
        let thread = {
            let mut state = self.shared.lock();
            state.ended = true;
            state.thread.take()
        };
        self.shared.changed.notify_all();
        // It writes what is left. A panic of it has cost only what was to be kept.
        drop(thread.map(JoinHandle::join));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    /// Adds `bytes`, which begin at `place` of `block`, to what is there of it.
    fn add(self: &Arc<Self>, block: u64, place: usize, bytes: &[u8]) {
        let file = self.entry.blocks.range(block);
        let block_bytes = to_usize(file.end - file.start);
        let mut state = self.lock();
        if !state.partial.contains_key(&block) {
            let Some(held) = state.hold(&self.budget, block_bytes) else { return };
            state
                .partial
                .insert(block, PartialBlock { bytes: vec![0; block_bytes], there: Vec::new(), held });
        }
        let Some(part) = state.partial.get_mut(&block) else { return };
        part.add(place, bytes);
        if !part.is_whole() {
            return;
        }
        let part = state.partial.remove(&block);
        drop(state);
        if let Some(PartialBlock { mut bytes, held, .. }) = part {
            let piece = Piece::copy(self.entry.blocks, block..block + 1, &[&mut bytes], Aligned::default());
            self.pass(piece, held);
        }
    }

    /// Hands `piece` to the thread, which starts with the first one.
    fn pass(self: &Arc<Self>, piece: Piece, held: Held) {
        let mut state = self.lock();
        state.queue.push_back((piece, held));
        if state.thread.is_none() {
            let shared = Arc::clone(self);
            let started = thread::Builder::new().name("flashpack-cache".into()).spawn(move || shared.work());
            match started {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => state.stop(&error),
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Writes what is passed on, until there will be nothing more.
    fn work(&self) {
        let mut room = 0;
        while let Some((piece, held)) = self.next() {
            let bytes = piece.memory.as_slice().len() as u64;
            let kept = self.make_room(&mut room, bytes).and_then(|()| self.entry.write(&piece));
            drop(held);
            let mut state = self.lock();
            state.writing = 0..0;
            state.idle.push(piece.memory);
            state.idle.truncate(MOST_IDLE);
            if let Err(error) = kept {
                state.stop(&error);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// What is to be written next; none if the object is dropped.
    fn next(&self) -> Option<(Piece, Held)> {
        let mut state = self.lock();
        loop {
            if let Some((piece, held)) = state.queue.pop_front() {
                state.writing = piece.blocks.clone();
                return Some((piece, held));
            }
            if state.ended {
                return None;
            }
            state = self.changed.wait(state).unpoisoned();
        }
    }

    /// Takes `bytes` of the `room` that there is, and makes more first if that is less.
    fn make_room(&self, room: &mut u64, bytes: u64) -> io::Result<()> {
        if *room < bytes {
            let more = self.entry.missing_bytes().clamp(bytes, ROOM_BYTES);
            if !self.folder.make_room(more)? {
                return Err(io::Error::other("it holds as much as it may"));
            }
            *room = more;
        }
        *room -= bytes;
        Ok(())
    }
}

impl State {
    fn stop(&mut self, error: &io::Error) {
        self.stopped = Some(error.to_string());
        self.drop_pending(&(0..u64::MAX));
    }

    /// Takes `bytes` of the `budget`, for which blocks that are not whole make way.
    fn hold(&mut self, budget: &Budget, bytes: usize) -> Option<Held> {
        if self.stopped.is_some() {
            return None;
        }
        loop {
            let held = budget.take(bytes);
            if held.is_some() || self.partial.pop_first().is_none() {
                return held;
            }
        }
    }

    /// Gives up what has yet to be written of `blocks`.
    fn drop_pending(&mut self, blocks: &Range<u64>) {
        self.partial.retain(|block, _| !blocks.contains(block));
        self.queue.retain(|(piece, _)| !overlap(&piece.blocks, blocks));
    }
}

impl PartialBlock {
    fn add(&mut self, place: usize, bytes: &[u8]) {
        self.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        self.there.push(place..place + bytes.len());
        self.there.sort_by_key(|range| range.start);
        self.there.dedup_by(|next, last| {
            let follows = next.start <= last.end;
            last.end = if follows { last.end.max(next.end) } else { last.end };
            follows
        });
    }

    fn is_whole(&self) -> bool {
        self.there.len() == 1 && self.there[0] == (0..self.bytes.len())
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Behind an object of 4 MiB, whose entry is in `folder`.
    fn behind(folder: &tempfile::TempDir) -> Behind {
        let cache = Folder::open(folder.path(), None).unwrap();
        let entry = Entry::open(&cache, "s3://bucket/key", "1", 4 << 20).unwrap();
        Behind::new(Arc::new(entry), cache, Budget::default())
    }

    #[test]
    fn a_full_disk_ends_it_and_forgets_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let mut behind = behind(&folder);
        let entry = Arc::get_mut(&mut Arc::get_mut(&mut behind.shared).unwrap().entry).unwrap();
        entry.files().data = full;
        entry.files().direct = None;
        behind.keep(&mut [&mut vec![1; 2 << 20]], &(0..2 << 20));
        behind.settle();
        assert!(behind.stopped().unwrap().contains("space"));
        behind.keep(&mut [&mut vec![1; 2 << 20]], &(2 << 20..4 << 20));
        assert!(behind.shared.lock().queue.is_empty());
        let missing = behind.shared.entry.read(&mut [&mut vec![0; 4 << 20]], &(0..4 << 20));
        assert_eq!((missing.len(), &missing[0]), (1, &(0..4 << 20)));
    }

    #[test]
    fn a_forked_child_neither_waits_for_threads_it_lacks_nor_for_their_locks() {
        let folder = tempfile::tempdir().unwrap();
        let mut behind = behind(&folder);
        behind.keep(&mut [&mut vec![1; 1 << 20]], &(0..1 << 20));
        let shared = Arc::clone(&behind.shared);
        let locked = shared.lock();
        behind.process = 0; // as of another process
        behind.keep(&mut [&mut vec![1; 1 << 20]], &(1 << 20..2 << 20));
        behind.forget(&(0..1)).unwrap();
        drop(behind);
        assert!(!locked.ended && locked.thread.is_some(), "the thread is the parent's");
        drop(locked);
        let parent = Behind { shared, process: process::id() };
        let forgotten = Arc::strong_count(&parent.shared) - 2; // but for the thread's, and the parent's
        assert_eq!(forgotten, 1, "a child must not drop what stands for a thread");
    }

    #[test]
    fn what_is_yet_to_be_written_is_forgotten_too() {
        let folder = tempfile::tempdir().unwrap();
        let behind = behind(&folder);
        behind.shared.lock().thread = Some(thread::spawn(|| ())); // which writes nothing
        behind.keep(&mut [&mut vec![1; 1 << 20]], &(0..1 << 20));
        behind.keep(&mut [&mut [1; 5]], &(2 << 20..(2 << 20) + 5));
        behind.forget(&(1..2)).unwrap();
        behind.forget(&(8..9)).unwrap();
        let state = behind.shared.lock();
        assert!(state.queue.is_empty() && state.partial.is_empty());
    }

    #[test]
    fn partial_blocks_make_way_and_without_memory_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let behind = behind(&folder);
        behind.keep(&mut [&mut [1; 5]], &(3..8)); // begins a part
        let budget = &behind.shared.budget;
        let most = 64 << 20;
        assert!(budget.take(most).is_none());
        let mut state = behind.shared.lock();
        assert_eq!(state.partial.len(), 1);
        let all = state.hold(budget, most).unwrap();
        assert!(state.partial.is_empty());
        drop(state);
        behind.keep(&mut [&mut vec![1; 1 << 20]], &(0..1 << 20));
        behind.keep(&mut [&mut [1; 5]], &(3..8));
        let state = behind.shared.lock();
        assert!(state.queue.is_empty() && state.partial.is_empty() && state.thread.is_none());
        drop((state, all));
    }

    #[test]
    fn parts_become_a_block_in_any_order() {
        let held = Budget::default().take(10).unwrap();
        let mut part = PartialBlock { bytes: vec![0; 10], there: Vec::new(), held };
        for (place, bytes, there) in [
            (6, &[6, 7][..], &[(6, 8)][..]),
            (0, &[0, 1], &[(0, 2), (6, 8)]),
            (1, &[1, 2, 3], &[(0, 4), (6, 8)]),
            (8, &[8, 9], &[(0, 4), (6, 10)]),
            (3, &[3, 4, 5, 6], &[(0, 10)]),
        ] {
            assert!(!part.is_whole());
            part.add(place, bytes);
            let found: Vec<_> = part.there.iter().map(|range| (range.start, range.end)).collect();
            assert_eq!(found, there);
        }
        assert!(part.is_whole());
        assert_eq!(part.bytes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
