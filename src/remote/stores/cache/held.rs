//! Memory for copies that wait for the disk, bounded for all objects of a process together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Most bytes of copies: a second of a slow disk.
const MOST_BYTES: usize = 64 << 20;

/// Bytes that all objects of a process hold.
#[derive(Clone, Debug, Default)]
pub(in crate::remote::stores) struct Budget(Arc<AtomicUsize>);

/// Some of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// Takes so many bytes, if there are as many.
    pub(super) fn take(&self, bytes: usize) -> Option<Held> {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= MOST_BYTES);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Held { budget: self.clone(), bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_share_what_there_is() {
        let (one, other) = (Budget::default(), Budget::default());
        let shared = one.clone();
        let first = shared.take(MOST_BYTES - 1).unwrap();
        assert!(one.take(2).is_none() && other.take(2).is_some());
        drop(first);
        assert!(one.take(MOST_BYTES).is_some());
        assert!(one.take(MOST_BYTES + 1).is_none() && one.take(usize::MAX).is_none());
    }
}
