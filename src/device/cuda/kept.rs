//! What a process keeps from load to load: staging buffers, and for each device its primary context and copy streams.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    process, ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicPtr, AtomicUsize, Ordering},
    },
};

use super::{
    Pinned,
    handles::{Primary, Stream},
};
use crate::{
    device::pool::{self, Pool, Usage},
    error::Result,
    sync::Unpoisoned as _,
};

/// Copy streams of a device, which all its lanes share: with two the next copy is queued behind none while one ends, and
/// a device has few queues for all the streams of a process.
pub(super) const STREAMS: usize = 4;

/// What this process keeps.
pub(super) struct Kept {
    process: u32,
    pub(super) pool: Pool<Pinned>,
    devices: Mutex<BTreeMap<i32, Arc<KeptDevice>>>,
}

/// What is kept of a device, made when it is first needed.
#[derive(Debug)]
pub(super) struct KeptDevice {
    streams: Mutex<[Option<Arc<Stream>>; STREAMS]>,
    next: AtomicUsize,
    /// The last to go.
    pub(super) primary: Primary,
}

impl KeptDevice {
    /// Copy stream `number`; the primary context is current.
    pub(super) fn stream(&self, number: usize) -> Result<Arc<Stream>> {
        let mut streams = self.streams.lock().unpoisoned();
        if let Some(stream) = &streams[number] {
            return Ok(Arc::clone(stream));
        }
        let stream = Arc::new(Stream::new(self.primary.context)?);
        streams[number] = Some(Arc::clone(&stream));
        Ok(stream)
    }

    /// The number of the copy stream that is the next lane's.
    pub(super) fn next_number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % STREAMS
    }
}

impl Kept {
    fn new() -> Self {
        let pool = Pool::new(pool::LIMIT_BYTES);
        Self { process: process::id(), pool, devices: Mutex::default() }
    }

    pub(super) fn device(&self, ordinal: i32) -> Result<Arc<KeptDevice>> {
        let mut devices = self.devices.lock().unpoisoned();
        if let Some(device) = devices.get(&ordinal) {
            return Ok(Arc::clone(device));
        }
        let primary = Primary::of(ordinal)?;
        let device = Arc::new(KeptDevice { primary, streams: Mutex::default(), next: AtomicUsize::new(0) });
        devices.insert(ordinal, Arc::clone(&device));
        Ok(device)
    }
}

/// What this process keeps.
///
/// A child made by `fork` begins anew: the buffers of its parent are no memory of the child's
/// (`HostBuffer::keep_from_children`), its streams are nothing there, and a thread that the child does not have may hold
/// the locks.
pub(super) fn kept() -> &'static Kept {
    static CURRENT: AtomicPtr<Kept> = AtomicPtr::new(ptr::null_mut());
    let found = CURRENT.load(Ordering::Acquire);
    // SAFETY: null, or from the box below, which is never freed once it is here.
    if let Some(kept) = unsafe { found.as_ref() }
        && kept.process == process::id()
    {
        return kept;
    }
    let fresh = Box::into_raw(Box::new(Kept::new()));
    let kept = match CURRENT.compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other) => {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
            other
        }
    };
    // SAFETY: in `CURRENT`, put there by this thread or another of this process.
    unsafe { &*kept }
}

/// All staging buffers of this process, at most [`pool::limit`] bytes of them.
pub fn pinned(asked: Option<NonZeroU64>) -> &'static Pool<Pinned> {
    let kept = kept();
    kept.pool.set_limit(pool::limit(asked));
    &kept.pool
}

/// How much memory these take.
pub fn usage() -> Usage {
    kept().pool.usage()
}

/// Frees all that no load uses just now.
pub fn release() {
    kept().pool.clear();
    kept().devices.lock().unpoisoned().clear();
}
