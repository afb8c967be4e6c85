//! What reading an object takes, counted by the threads that read it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::remote::Traffic;

#[derive(Debug, Default)]
pub(in crate::remote::stores) struct Meter {
    requests: AtomicU64,
    retries: AtomicU64,
    fetched: AtomicU64,
    cached: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
    /// Nanoseconds; 0 before the first answer.
    latency: AtomicU64,
}

impl Meter {
    pub(super) fn sent(&self, is_retry: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.retries.fetch_add(u64::from(is_retry), Relaxed);
    }

    pub(super) fn answered(&self, after: Duration) {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX).max(1);
        let shorter = |seen| (seen == 0 || after < seen).then_some(after);
        let _ = self.latency.fetch_update(Relaxed, Relaxed, shorter); // it was shorter once
    }

    /// Whether any request has had an answer.
    pub(super) fn is_answered(&self) -> bool {
        self.latency.load(Relaxed) > 0
    }

    pub(in crate::remote::stores) fn fetched(&self, bytes: usize) {
        self.fetched.fetch_add(bytes as u64, Relaxed);
    }

    pub(in crate::remote::stores) fn cached(&self, bytes: usize) {
        self.cached.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn begin(&self) {
        self.most.fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.now.fetch_sub(1, Relaxed);
    }

    pub(in crate::remote::stores) fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.requests.load(Relaxed),
            retries: self.retries.load(Relaxed),
            fetched_bytes: self.fetched.load(Relaxed),
            cached_bytes: self.cached.load(Relaxed),
            connections: self.most.load(Relaxed),
            latency: Duration::from_nanos(self.latency.load(Relaxed)),
        }
    }
}
