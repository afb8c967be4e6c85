//! Staging buffers, kept from load to load: pinning memory costs more than reading into it.

use std::{
    mem,
    num::NonZeroU64,
    ops::{Deref, DerefMut},
    sync::OnceLock,
};

use super::{Device, Staging};
use crate::{
    error::Result,
    numa::Node,
    progress::{self, LOOK},
    ram::Ram,
    sync::{Condvar, Mutex, MutexGuard, Unpoisoned as _},
};

/// Most staging memory of a process unless it is told otherwise: enough to keep the readers of a network and the link busy,
/// little beside any model.
pub const LIMIT_BYTES: usize = 256 << 20;

/// Most staging memory of this process, in bytes: `asked`, else [`LIMIT_BYTES`], and no more than there is room for. Nobody
/// can swap it or use it meanwhile, so that is a sixteenth of what the process could ever have, and of that no more than is
/// left when it first needs any.
#[must_use]
pub fn limit(asked: Option<NonZeroU64>) -> usize {
    static ROOM: OnceLock<u64> = OnceLock::new();
    let room = ROOM.get_or_init(|| match Ram::now() {
        Ram { total: 0, .. } => u64::MAX, // nobody tells
        Ram { total, available } => (total / 16).min(available),
    });
    let asked = asked.map_or(LIMIT_BYTES as u64, NonZeroU64::get);
    usize::try_from(asked.min(*room)).unwrap_or(usize::MAX)
}

/// A bounded set of staging buffers that all loads of a process share.
#[derive(Debug)]
pub struct Pool<B> {
    state: Mutex<State<B>>,
    released: Condvar,
}

#[derive(Debug)]
struct State<B> {
    limit: usize,
    /// Buffers nobody holds, the longest released first; copies from them may still run.
    free: Vec<B>,
    /// Bytes of all buffers, held and free.
    total: usize,
    peak: usize,
}

/// What came of asking for a buffer.
enum Attempt<'p, B: Staging> {
    Got(Lease<'p, B>),
    /// The state that had none, still locked: whoever goes on to wait must not miss what changes after the look.
    Nothing(MutexGuard<'p, State<B>>),
}

/// A buffer that its holder has to itself; the pool has it back when this is dropped. Copies from it may still run then,
/// as long as the buffer knows of them.
#[derive(Debug)]
pub struct Lease<'p, B: Staging> {
    pool: &'p Pool<B>,
    /// What the pool counts, whether there is a buffer yet or not.
    bytes: usize,
    buffer: Option<B>,
}

impl<B: Staging> Lease<'_, B> {
    /// Leaves the buffer in memory for good, as nobody knows when the copies from it end.
    pub fn abandon(mut self) {
        mem::forget(self.buffer.take());
    }

    /// Frees the buffer.
    fn discard(mut self) {
        self.buffer = None;
    }
}

impl<B: Staging> Deref for Lease<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.buffer.as_ref().expect("a lease that was handed out has a buffer")
    }
}

impl<B: Staging> DerefMut for Lease<'_, B> {
    fn deref_mut(&mut self) -> &mut B {
        self.buffer.as_mut().expect("a lease that was handed out has a buffer")
    }
}

impl<B: Staging> Drop for Lease<'_, B> {
    fn drop(&mut self) {
        let fits = self.pool.lock().fits();
        let kept = self.buffer.take_if(|buffer| fits && buffer.is_reusable());
        self.buffer = None;
        let mut state = self.pool.lock();
        match kept {
            Some(buffer) => state.free.push(buffer),
            None => state.total -= self.bytes,
        }
        drop(state);
        self.pool.released.notify_one();
    }
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
            state: Mutex::new(State { limit, free: Vec::new(), total: 0, peak: 0 }),
            released: Condvar::new(),
        }
    }

    /// Changes the limit. Buffers beyond it go, those that are held when they are given back.
    pub fn set_limit(&self, bytes: usize) {
        self.lock().limit = bytes;
        loop {
            let surplus = self.lock().take_surplus();
            let Some(buffer) = surplus else {
                return;
            };
            self.lease(buffer).discard();
        }
    }

    /// How many buffers of `bytes` there may be at the same time; one in any case.
    pub fn most(&self, bytes: usize) -> usize {
        (self.lock().limit / bytes.max(1)).max(1)
    }

    /// An idle buffer of at least `bytes`, at once: a free one, or a new one if the limit allows; else none.
    ///
    /// # Errors
    /// Those of [`Device::stage`].
    pub fn try_acquire<D: Device<Staging = B>>(
        &self,
        device: &D,
        bytes: usize,
    ) -> Result<Option<Lease<'_, B>>> {
        match self.attempt(device, bytes)? {
            Attempt::Got(lease) => Ok(Some(lease)),
            Attempt::Nothing(_) => Ok(None),
        }
    }

    /// An idle buffer of at least `bytes`, waiting for one if it must. Whoever waits holds none: two that each wait for
    /// the other's would wait forever.
    ///
    /// # Errors
    /// Those of [`Pool::try_acquire`]; [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) while it waits.
    pub fn acquire<D: Device<Staging = B>>(&self, device: &D, bytes: usize) -> Result<Lease<'_, B>> {
        loop {
            let mut state = match self.attempt(device, bytes)? {
                Attempt::Got(lease) => return Ok(lease),
                Attempt::Nothing(state) => state,
            };
            if state.free.is_empty() {
                progress::check()?;
                let waited = self.released.wait_timeout(state, LOOK);
                drop(waited.unpoisoned());
                continue;
            }
            // The one released first is the first to be idle; one that is too small makes room.
            let oldest = state.free.remove(0);
            drop(state);
            let mut oldest = self.lease(oldest);
            if oldest.wait_idle().is_ok() && oldest.len() >= bytes {
                return Ok(oldest);
            }
            oldest.discard();
        }
    }

    fn attempt<D: Device<Staging = B>>(&self, device: &D, bytes: usize) -> Result<Attempt<'_, B>> {
        let node = device.staging_node();
        let mut state = self.lock();
        while let Some((position, copied)) = state.first_settled(bytes, node) {
            let buffer = state.free.remove(position);
            drop(state);
            let lease = self.lease(buffer);
            if copied {
                return Ok(Attempt::Got(lease));
            }
            // Its copies failed, which is for the load that queued them to report.
            lease.discard();
            state = self.lock();
        }
        if !state.has_room(bytes) {
            return Ok(Attempt::Nothing(state));
        }
        state.total += bytes;
        state.peak = state.peak.max(state.total);
        drop(state);
        let mut lease = Lease { pool: self, bytes, buffer: None };
        lease.buffer = Some(device.stage(bytes)?);
        Ok(Attempt::Got(lease))
    }

    fn lease(&self, buffer: B) -> Lease<'_, B> {
        Lease { pool: self, bytes: buffer.len(), buffer: Some(buffer) }
    }

    /// Frees every buffer that nobody holds, once its copies are done.
    pub fn clear(&self) {
        let free = mem::take(&mut self.lock().free);
        for buffer in free {
            self.lease(buffer).discard();
        }
    }

    /// How much memory the pool holds.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { bytes: state.total, peak_bytes: state.peak }
    }

    /// No code panics while it holds the lock, so a poisoned state is a sound one.
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unpoisoned()
    }
}

impl<B: Staging> State<B> {
    const fn fits(&self) -> bool {
        self.total <= self.limit
    }

    fn take_surplus(&mut self) -> Option<B> {
        (!self.fits() && !self.free.is_empty()).then(|| self.free.remove(0))
    }

    /// Whether one more buffer of `bytes` keeps within the limit; the first may exceed it.
    const fn has_room(&self, bytes: usize) -> bool {
        self.total == 0 || self.total + bytes <= self.limit
    }

    /// The first large enough buffer on `node` that no copy reads any more, and whether its copies were carried out. One
    /// of another node only if no new one may be made: the way to it costs every load, pinning costs once.
    fn first_settled(&mut self, bytes: usize, node: Option<Node>) -> Option<(usize, bool)> {
        let near = self.first_settled_of(bytes, |buffer| node.is_none() || buffer.node() == node);
        if near.is_some() || self.has_room(bytes) { near } else { self.first_settled_of(bytes, |_| true) }
    }

    fn first_settled_of(&mut self, bytes: usize, wanted: impl Fn(&B) -> bool) -> Option<(usize, bool)> {
        let settled = |(position, buffer): (usize, &mut B)| match buffer.is_idle() {
            Ok(false) => None,
            idle => Some((position, idle.is_ok())),
        };
        let fits = |(_, buffer): &(usize, &mut B)| buffer.len() >= bytes && wanted(buffer);
        self.free.iter_mut().enumerate().filter(fits).find_map(settled)
    }
}
