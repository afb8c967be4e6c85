//! Page-locked staging buffers, all of one process in one pool.

use std::{
    mem::ManuallyDrop,
    process, ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use super::driver::{self, Context, Entered, Event};
use crate::{
    device::{
        Staging,
        pool::{self, Pool},
    },
    error::Result,
    io::HostBuffer,
};

/// The staging buffers of one process.
struct Owned {
    process: u32,
    pool: Pool<Pinned>,
}

/// All staging buffers of this process.
///
/// A child made by `fork` begins with a pool of its own: the buffers of its parent are no memory of the child's
/// (`HostBuffer::keep_from_children`), and a thread that the child does not have may hold the lock of their pool.
pub fn pinned() -> &'static Pool<Pinned> {
    static CURRENT: AtomicPtr<Owned> = AtomicPtr::new(ptr::null_mut());
    let process = process::id();
    let found = CURRENT.load(Ordering::Acquire);
    // SAFETY: null, or from the box below, which is never freed once it is here.
    if let Some(owned) = unsafe { found.as_ref() }
        && owned.process == process
    {
        return &owned.pool;
    }
    let pool = Pool::new(pool::LIMIT_BYTES);
    let fresh = Box::into_raw(Box::new(Owned { process, pool }));
    let owned = match CURRENT.compare_exchange(found, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other) => {
            // SAFETY: made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
            other
        }
    };
    // SAFETY: in `CURRENT`, put there by this thread or another of this process.
    unsafe { &(*owned).pool }
}

/// Whether pinned memory was refused and pageable memory took its place, which copies more slowly.
static PAGEABLE: AtomicBool = AtomicBool::new(false);

/// Whether any staging memory of this process could not be pinned.
pub fn fell_back_to_pageable() -> bool {
    PAGEABLE.load(Ordering::Relaxed)
}

/// Page-locked host memory, which the device copies from by itself while the host goes on; ordinary memory where the
/// system refuses to lock.
///
/// It is this process's own memory, registered: on huge pages there are 512 times fewer of them to make and to lock than
/// in memory of the driver's.
#[derive(Debug)]
pub struct Pinned {
    pub(super) buffer: ManuallyDrop<HostBuffer>,
    /// Where the buffer is registered.
    context: Option<Context>,
    pub(super) busy: Option<Event>,
}

impl Pinned {
    /// Memory of `context`, which is current.
    pub(super) fn new(context: Context, bytes: usize) -> Result<Self> {
        let mut buffer = HostBuffer::new(bytes)?;
        buffer.keep_from_children();
        // SAFETY: the buffer's own bytes, which are freed only after `unregister`.
        let pinned = unsafe { driver::lock(buffer.data(), bytes) }?;
        if !pinned {
            PAGEABLE.store(true, Ordering::Relaxed);
        }
        Ok(Self { buffer: ManuallyDrop::new(buffer), context: pinned.then_some(context), busy: None })
    }

    fn unregister(&mut self) -> Result<()> {
        let Some(context) = self.context else {
            return Ok(());
        };
        let _entered = Entered::new(context)?;
        // SAFETY: locked by `new`, once, and no copy reads it any more.
        unsafe { driver::unlock(self.buffer.data()) }
    }
}

impl Staging for Pinned {
    fn bytes(&mut self) -> &mut [u8] {
        debug_assert!(self.busy.is_none(), "a copy may still read the buffer");
        self.buffer.as_mut_slice()
    }

    fn len(&self) -> usize {
        self.buffer.len()
    }

    fn is_idle(&mut self) -> Result<bool> {
        let idle = self.busy.as_ref().map_or(Ok(true), Event::is_reached)?;
        if idle {
            self.busy = None;
        }
        Ok(idle)
    }

    fn wait_idle(&mut self) -> Result<()> {
        self.busy.as_ref().map_or(Ok(()), Event::wait)?;
        self.busy = None;
        Ok(())
    }

    /// Memory that could not be pinned makes way: a later load tries again.
    fn is_reusable(&self) -> bool {
        self.context.is_some()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Where the driver does not say that the device is done with the memory, it stays mapped and pinned: another
        // owner's bytes would be at its place.
        if self.wait_idle().and_then(|()| self.unregister()).is_ok() {
            // SAFETY: once, and nothing uses the buffer after it.
            unsafe { ManuallyDrop::drop(&mut self.buffer) };
        }
    }
}
