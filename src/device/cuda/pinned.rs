//! Page-locked staging buffers.

use std::{
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::handles::{self, Context, Entered, Event, Stream};
use crate::{
    device::Staging,
    error::Result,
    io::HostBuffer,
    numa::{Node, Nodes},
};

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
    /// The NUMA node of the thread that pinned it, and so touched it first.
    node: Option<Node>,
    /// Where the buffer is registered.
    context: Option<Context>,
    /// Recorded behind the copies of the buffer, again and again.
    copied: Option<Event>,
    /// The stream of the copies that may still run.
    busy: Option<Arc<Stream>>,
}

impl Pinned {
    /// Memory of `context`, which is current.
    pub(super) fn new(context: Context, bytes: usize) -> Result<Self> {
        let mut buffer = HostBuffer::new(bytes)?;
        buffer.keep_from_children();
        // SAFETY: the buffer's own bytes, which are freed only after `unregister`.
        let pinned = unsafe { handles::lock(buffer.data(), bytes) }?;
        if !pinned {
            PAGEABLE.store(true, Ordering::Relaxed);
        }
        let (buffer, context) = (ManuallyDrop::new(buffer), pinned.then_some(context));
        Ok(Self { buffer, node: Nodes::here().confining(), context, copied: None, busy: None })
    }

    /// Makes the buffer busy until what `stream` has queued is done; its context is current.
    pub(super) fn mark(&mut self, stream: &Arc<Stream>) -> Result<()> {
        if self.copied.as_ref().is_none_or(|event| event.context != stream.context) {
            self.copied = Some(Event::new(stream.context)?);
        }
        self.copied.as_ref().map_or(Ok(()), |event| event.record(stream.handle))?;
        self.busy = Some(Arc::clone(stream));
        Ok(())
    }

    /// The event to wait for, if there is one.
    fn awaited(&self) -> Option<&Event> {
        self.busy.as_ref().and(self.copied.as_ref())
    }

    /// Waits for the copies by all means; any context may be current.
    fn settle(&mut self) -> Result<()> {
        let Some(stream) = self.busy.clone() else {
            return Ok(());
        };
        let _entered = Entered::new(stream.context)?;
        self.wait_idle().or_else(|_| stream.synchronize())
    }

    fn unregister(&mut self) -> Result<()> {
        let Some(context) = self.context else {
            return Ok(());
        };
        let _entered = Entered::new(context)?;
        // SAFETY: locked by `new`, once, and no copy reads it any more.
        unsafe { handles::unlock(self.buffer.data()) }
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

    fn node(&self) -> Option<Node> {
        self.node
    }

    fn is_idle(&mut self) -> Result<bool> {
        let idle = self.awaited().map_or(Ok(true), Event::is_reached)?;
        if idle {
            self.busy = None;
        }
        Ok(idle)
    }

    fn wait_idle(&mut self) -> Result<()> {
        self.awaited().map_or(Ok(()), Event::wait)?;
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
        if self.settle().and_then(|()| self.unregister()).is_ok() {
            // SAFETY: once, and nothing uses the buffer after it.
            unsafe { ManuallyDrop::drop(&mut self.buffer) };
        }
    }
}
