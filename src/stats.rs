//! Where the time of a load goes: each thread times its stages, and the load adds them up.

use std::{
    cell::RefCell,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{numa::Node, remote::Traffic, sync::Unpoisoned as _};

/// What a reader thread spends time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Getting staging memory: pinning it, or waiting until other loads give some back.
    Staging,
    /// Waiting for the device to be done with a staging buffer.
    Device,
    /// Reading from the source.
    Read,
    /// Computing and comparing digests.
    Hash,
    /// Queueing copies to the device.
    Queue,
}

const STAGES: usize = 5;

impl Stage {
    /// Its name in reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Device => "device",
            Self::Read => "read",
            Self::Hash => "hash",
            Self::Queue => "queue",
        }
    }
}

/// One thread in one stage, from when until when since the load began to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// In the order in which threads started.
    pub thread: usize,
    /// What it did.
    pub stage: Stage,
    /// Its first moment.
    pub began: Duration,
    /// Its last moment.
    pub ended: Duration,
}

/// The stages of one load, summed over its threads, and if asked for each of them.
#[derive(Debug, Default)]
pub struct Clock {
    /// The beginning, and all spans of threads whose [`Lap`] has ended.
    timeline: Option<(Instant, Mutex<Vec<Span>>)>,
    stages: [AtomicU64; STAGES],
    /// From a thread's first moment to its last.
    present: AtomicU64,
    threads: AtomicUsize,
}

impl Clock {
    /// Begins now. With `keeps_spans` it keeps a [`Span`], of 48 bytes, each time a thread ends a stage.
    #[must_use]
    pub fn new(keeps_spans: bool) -> Self {
        let timeline = keeps_spans.then(|| (Instant::now(), Mutex::default()));
        Self { timeline, ..Self::default() }
    }

    /// Begins to time the calling thread.
    #[must_use]
    pub fn start(&self) -> Lap<'_> {
        let thread = self.threads.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        Lap { clock: self, thread, began: now, last: now, spent: [Duration::ZERO; STAGES], spans: Vec::new() }
    }

    /// Time spent in `stage` by the threads whose [`Lap`] has ended.
    #[must_use]
    pub fn spent(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.stages[stage as usize].load(Ordering::Relaxed))
    }

    /// Threads that were timed.
    fn threads(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }

    fn present(&self) -> Duration {
        Duration::from_nanos(self.present.load(Ordering::Relaxed))
    }

    /// All spans there are so far, thread by thread; none if they are not kept.
    fn timeline(&self) -> Vec<Span> {
        let Some((_, spans)) = &self.timeline else { return Vec::new() };
        let mut spans = spans.lock().unpoisoned().clone();
        spans.sort_by_key(|span| (span.thread, span.began));
        spans
    }
}

/// The times of one thread; they reach the [`Clock`] when it is dropped.
#[derive(Debug)]
pub struct Lap<'a> {
    clock: &'a Clock,
    thread: usize,
    began: Instant,
    last: Instant,
    spent: [Duration; STAGES],
    spans: Vec<Span>,
}

impl Lap<'_> {
    /// Counts the time since the last end of a stage, or the start, as `stage`.
    pub fn end(&mut self, stage: Stage) {
        let now = Instant::now();
        self.spent[stage as usize] += now - self.last;
        if let Some((origin, _)) = self.clock.timeline {
            let (began, ended) = (self.last - origin, now - origin);
            self.spans.push(Span { thread: self.thread, stage, began, ended });
        }
        self.last = now;
    }
}

impl Drop for Lap<'_> {
    fn drop(&mut self) {
        for (total, spent) in self.clock.stages.iter().zip(self.spent) {
            total.fetch_add(nanos(spent), Ordering::Relaxed);
        }
        self.clock.present.fetch_add(nanos(self.began.elapsed()), Ordering::Relaxed);
        if let Some((_, spans)) = &self.clock.timeline {
            spans.lock().unpoisoned().append(&mut self.spans);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What held a load up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Opening the file, parsing its index, planning.
    Index,
    /// Reading from a disk.
    Disk,
    /// Reading from a store.
    Network,
    /// Reading from the page cache, and the first touch of new memory by that.
    PageCache,
    /// Digests.
    Checksums,
    /// Getting staging memory.
    Staging,
    /// The device, or the link to it.
    DeviceLink,
}

impl Limit {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::PageCache => "page cache",
            Self::Checksums => "checksums",
            Self::Staging => "staging memory",
            Self::DeviceLink => "device link",
        }
    }
}

/// A finished load: what it read, and where its time went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes read from the file, padding included; what a mapping shows is not read by the load.
    pub bytes: u64,
    /// Of these, bytes compared with digests.
    pub verified_bytes: u64,
    /// Reader threads, all that there ever were.
    pub threads: usize,
    /// Whether reads went past the page cache.
    pub direct: bool,
    /// Whether a disk supplied more than a few percent of the bytes.
    pub from_disk: bool,
    /// The NUMA node that the readers stayed on; none if there is only one, or they ran anywhere.
    pub node: Option<Node>,
    /// What requests to stores it took, since the model was opened; none of files.
    pub traffic: Option<Traffic>,
    /// Opening, parsing, validating, planning.
    pub open: Duration,
    /// From the beginning to the end, without what the caller does between planning and reading.
    pub wall: Duration,
    /// [`Stage::Staging`], as all below: summed over threads.
    pub staging: Duration,
    /// [`Stage::Device`].
    pub device: Duration,
    /// [`Stage::Read`].
    pub read: Duration,
    /// [`Stage::Hash`].
    pub hash: Duration,
    /// [`Stage::Queue`].
    pub queue: Duration,
    /// Threads that had not begun, or had nothing left to do, while others worked.
    pub idle: Duration,
    /// What each thread did when; empty unless `FLASHPACK_TIMELINE` asks for it.
    pub timeline: Vec<Span>,
}

/// The device is the limit when readers wait for it for one part in so many of their time: readers that are the limit
/// themselves never wait.
const WAITING_PART: u32 = 5;

impl Report {
    /// Adds the times of `clock`, whose threads worked for `reading`: no more than were planned, fewer if the system had
    /// no more.
    #[must_use]
    pub fn with_times(self, clock: &Clock, reading: Duration) -> Self {
        let started = self.threads.min(clock.threads());
        let threads = u32::try_from(started).unwrap_or(u32::MAX);
        Self {
            threads: started,
            wall: self.open + reading,
            staging: clock.spent(Stage::Staging),
            device: clock.spent(Stage::Device),
            read: clock.spent(Stage::Read),
            hash: clock.spent(Stage::Hash),
            queue: clock.spent(Stage::Queue),
            idle: reading.saturating_mul(threads).saturating_sub(clock.present()),
            timeline: clock.timeline(),
            ..self
        }
    }

    /// What held the load up; `None` if it had nothing to read.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        if self.bytes == 0 {
            return None;
        }
        if self.open * 2 > self.wall {
            return Some(Limit::Index);
        }
        let device = self.device + self.queue;
        let busy = self.staging + device + self.read + self.hash;
        if device * WAITING_PART > busy {
            return Some(Limit::DeviceLink);
        }
        let source = match self.traffic {
            Some(_) => Limit::Network,
            None if self.from_disk => Limit::Disk,
            None => Limit::PageCache,
        };
        let stages = [(self.staging, Limit::Staging), (self.hash, Limit::Checksums), (self.read, source)];
        stages.into_iter().max_by_key(|&(spent, _)| spent).map(|(_, limit)| limit)
    }

    /// The same for other languages: times in nanoseconds.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let span =
            |span: &Span| json!([span.thread, span.stage.name(), nanos(span.began), nanos(span.ended)]);
        json!({
            "bytes": self.bytes,
            "verified_bytes": self.verified_bytes,
            "threads": self.threads,
            "direct": self.direct,
            "from_disk": self.from_disk,
            "node": self.node.map(|node| node.0),
            "traffic": self.traffic,
            "open": nanos(self.open),
            "wall": nanos(self.wall),
            "staging": nanos(self.staging),
            "device": nanos(self.device),
            "read": nanos(self.read),
            "hash": nanos(self.hash),
            "queue": nanos(self.queue),
            "idle": nanos(self.idle),
            "limit": self.limit().map(Limit::name),
            "timeline": self.timeline.iter().map(span).collect::<Vec<_>>(),
        })
    }

    /// Makes this the last load of the calling thread.
    pub fn remember(self) {
        LAST.set(Some(self));
    }

    /// The last load that the calling thread finished.
    #[must_use]
    pub fn last() -> Option<Self> {
        LAST.with_borrow(Clone::clone)
    }
}

thread_local! {
    static LAST: RefCell<Option<Report>> = const { RefCell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn report() -> Report {
        Report { bytes: 1, threads: 2, wall: seconds(10), read: seconds(12), ..Report::default() }
    }

    #[test]
    fn the_limit_is_the_stage_that_takes_longest() {
        assert_eq!(report().limit(), Some(Limit::PageCache));
        assert_eq!(Report { from_disk: true, ..report() }.limit(), Some(Limit::Disk));
        assert_eq!(Report { hash: seconds(13), ..report() }.limit(), Some(Limit::Checksums));
        assert_eq!(Report { staging: seconds(13), ..report() }.limit(), Some(Limit::Staging));
        assert_eq!(Report { open: seconds(6), ..report() }.limit(), Some(Limit::Index));
        assert_eq!(Report { bytes: 0, ..report() }.limit(), None);
    }

    #[test]
    fn readers_that_wait_for_the_device_are_not_the_limit() {
        assert_eq!(Report { device: seconds(1), ..report() }.limit(), Some(Limit::PageCache));
        assert_eq!(Report { device: seconds(4), ..report() }.limit(), Some(Limit::DeviceLink));
        assert_eq!(Report { queue: seconds(4), ..report() }.limit(), Some(Limit::DeviceLink));
    }

    #[test]
    fn laps_reach_the_clock_and_leave_the_rest_idle() {
        let clock = Clock::default();
        let mut lap = clock.start();
        std::thread::sleep(Duration::from_millis(2));
        lap.end(Stage::Read);
        lap.end(Stage::Hash);
        assert_eq!(clock.spent(Stage::Read), Duration::ZERO, "not yet");
        drop(lap);
        assert!(clock.spent(Stage::Read) >= Duration::from_millis(2));
        assert!(clock.spent(Stage::Hash) < clock.spent(Stage::Read));
        drop(clock.start());
        let made = report().with_times(&clock, seconds(1));
        assert_eq!((made.threads, made.idle + clock.present()), (2, seconds(2)));
        assert_eq!((made.read, made.wall), (clock.spent(Stage::Read), seconds(1)));
    }

    #[test]
    fn spans_are_kept_if_asked_for_and_lie_within_the_load() {
        let clock = Clock::new(true);
        let (mut first, mut second) = (clock.start(), clock.start());
        second.end(Stage::Read);
        first.end(Stage::Read);
        second.end(Stage::Hash);
        drop((second, first));
        let made = report().with_times(&clock, seconds(1)).timeline;
        let told: Vec<_> = made.iter().map(|span| (span.thread, span.stage)).collect();
        assert_eq!(told, [(0, Stage::Read), (1, Stage::Read), (1, Stage::Hash)]);
        assert!(made.iter().all(|span| span.began <= span.ended && span.ended < seconds(1)));
        assert_eq!(made[1].ended, made[2].began);
        let silent = Clock::default();
        silent.start().end(Stage::Read);
        assert!(report().with_times(&silent, seconds(1)).timeline.is_empty());
    }

    #[test]
    fn threads_that_could_not_be_started_are_not_reported() {
        let clock = Clock::default();
        drop(clock.start());
        let made = Report { threads: 16, ..report() }.with_times(&clock, seconds(1));
        assert_eq!((made.threads, made.idle + clock.present()), (1, seconds(1)));
    }

    #[test]
    fn each_thread_remembers_its_own_last_load() {
        report().remember();
        assert_eq!(Report::last(), Some(report()));
        assert_eq!(std::thread::spawn(Report::last).join().unwrap(), None);
    }
}
