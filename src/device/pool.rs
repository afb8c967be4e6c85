//! Staging buffers, kept from load to load: pinning memory costs more than reading into it.

use std::sync::PoisonError;

use super::{Device, Staging};
use crate::{
    error::Result,
    sync::{Condvar, Mutex, MutexGuard},
};

/// Most staging memory of a process: enough to keep sixteen readers and the link busy, little beside any model.
pub const LIMIT_BYTES: usize = 256 << 20;

/// A bounded set of staging buffers that all loads of a process share.
#[derive(Debug)]
pub struct Pool<B> {
    limit: usize,
    state: Mutex<State<B>>,
    released: Condvar,
}

#[derive(Debug)]
struct State<B> {
    /// Buffers nobody holds, the longest released first; copies from them may still run.
    free: Vec<B>,
    /// Bytes of all buffers, held and free.
    total: usize,
    peak: usize,
}

/// What came of asking for a buffer.
enum Attempt<'p, B> {
    Got(B),
    /// The state that had none, still locked: whoever goes on to wait must not miss what changes after the look.
    Nothing(MutexGuard<'p, State<B>>),
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all buffers now.
    pub bytes: usize,
    /// The most there ever were.
    pub peak_bytes: usize,
}

impl<B: Staging> Pool<B> {
    /// A pool of at most `limit` bytes, without any yet.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::new(State { free: Vec::new(), total: 0, peak: 0 }),
            released: Condvar::new(),
        }
    }

    /// An idle buffer of at least `bytes`, at once: a free one, or a new one if the limit allows; else none.
    ///
    /// # Errors
    /// Those of [`Device::stage`] and [`Staging::is_idle`].
    pub fn try_acquire<D: Device<Staging = B>>(&self, device: &D, bytes: usize) -> Result<Option<B>> {
        match self.attempt(device, bytes)? {
            Attempt::Got(buffer) => Ok(Some(buffer)),
            Attempt::Nothing(_) => Ok(None),
        }
    }

    /// An idle buffer of at least `bytes`, waiting for one if it must. Whoever waits holds none: two that each wait for
    /// the other's would wait forever.
    ///
    /// # Errors
    /// Those of [`Pool::try_acquire`] and [`Staging::wait_idle`].
    pub fn acquire<D: Device<Staging = B>>(&self, device: &D, bytes: usize) -> Result<B> {
        loop {
            let mut state = match self.attempt(device, bytes)? {
                Attempt::Got(buffer) => return Ok(buffer),
                Attempt::Nothing(state) => state,
            };
            if state.free.is_empty() {
                drop(self.released.wait(state).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            // The one released first is the first to be idle; one that is too small makes room.
            let mut oldest = state.free.remove(0);
            drop(state);
            let waited = oldest.wait_idle();
            if waited.is_ok() && oldest.len() >= bytes {
                return Ok(oldest);
            }
            self.discard(oldest);
            waited?;
        }
    }

    fn attempt<D: Device<Staging = B>>(&self, device: &D, bytes: usize) -> Result<Attempt<'_, B>> {
        let mut state = self.lock();
        if let Some(position) = state.first_idle(bytes)? {
            return Ok(Attempt::Got(state.free.remove(position)));
        }
        if state.total > 0 && state.total + bytes > self.limit {
            return Ok(Attempt::Nothing(state));
        }
        state.total += bytes;
        state.peak = state.peak.max(state.total);
        drop(state);
        device.stage(bytes).map(Attempt::Got).inspect_err(|_| self.forget(bytes))
    }

    /// Gives a buffer back; copies from it may still run.
    pub fn release(&self, buffer: B) {
        self.lock().free.push(buffer);
        self.released.notify_one();
    }

    /// Frees every buffer that nobody holds, once its copies are done.
    pub fn clear(&self) {
        let free = std::mem::take(&mut self.lock().free);
        for mut buffer in free {
            // A failed copy has been reported by the load that queued it; the buffer is done with either way.
            let _ = buffer.wait_idle();
            self.discard(buffer);
        }
    }

    /// How much memory the pool holds.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { bytes: state.total, peak_bytes: state.peak }
    }

    fn discard(&self, buffer: B) {
        let bytes = buffer.len();
        drop(buffer);
        self.forget(bytes);
    }

    fn forget(&self, bytes: usize) {
        self.lock().total -= bytes;
        self.released.notify_one();
    }

    /// No code panics while it holds the lock, so a poisoned state is a sound one.
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Staging> State<B> {
    fn first_idle(&mut self, bytes: usize) -> Result<Option<usize>> {
        for (position, buffer) in self.free.iter_mut().enumerate() {
            if buffer.len() >= bytes && buffer.is_idle()? {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }
}
