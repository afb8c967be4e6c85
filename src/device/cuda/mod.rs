//! CUDA through its driver API, found at run time. torch owns the device's memory, its context and the caller's
//! stream; this engine owns staging buffers, copy streams and events.

mod driver;
mod pinned;

use std::ops::Range;

use self::driver::{Entered, Event, Handle, Primary};
pub use self::{
    driver::Stream,
    pinned::{Pinned, fell_back_to_pageable, pinned},
};
use super::{Device, Staging, fetch::ReadBack};
use crate::error::Result;

/// A device's memories that torch allocated, to be filled in the order of the caller's stream.
#[derive(Debug)]
pub struct Cuda {
    device: Primary,
    caller: Handle,
    /// Recorded on the caller's stream when the load began.
    allocated: Event,
    memories: Vec<u64>,
}

impl Cuda {
    /// Prepares to fill `memories`, addresses on device `ordinal`, after what is queued on stream `caller`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a CUDA driver;
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) for what the driver refuses.
    ///
    /// # Safety
    /// `caller` is a stream of torch's context on that device, or 0 for its default stream, and lives as long as the
    /// value. The memories may be written to until then, as far as the copies that will be queued reach.
    pub unsafe fn new(ordinal: i32, caller: usize, memories: Vec<u64>) -> Result<Self> {
        let device = Primary::of(ordinal)?;
        // SAFETY: the caller vouches for it.
        let caller = unsafe { Handle::of(caller) };
        let _entered = Entered::new(device.context)?;
        let allocated = Event::record(device.context, caller)?;
        Ok(Self { device, caller, allocated, memories })
    }

    fn enter(&self) -> Result<Entered> {
        Entered::new(self.device.context)
    }
}

impl Device for Cuda {
    type Staging = Pinned;
    type Stream = Stream;

    fn stage(&self, bytes: usize) -> Result<Pinned> {
        let _entered = self.enter()?;
        Pinned::new(self.device.context, bytes)
    }

    fn stream(&self) -> Result<Stream> {
        let _entered = self.enter()?;
        let stream = Stream::new(self.device.context)?;
        stream.handle.wait_for(&self.allocated)?;
        Ok(stream)
    }

    fn copy(
        &self,
        stream: &Stream,
        staging: &Pinned,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()> {
        let _entered = self.enter()?;
        let target = self.memories[memory] + offset;
        // SAFETY: the plan placed the bytes within the memory, which `new`'s caller vouched for. The source stays
        // untouched until the event of `mark_busy` says that the copy is done, or the stream is drained.
        unsafe { driver::copy_to_device(target, &staging.buffer.as_slice()[range], stream.handle) }
    }

    fn mark_busy(&self, stream: &Stream, staging: &mut Pinned) -> Result<()> {
        let _entered = self.enter()?;
        staging.busy = Some(Event::record(self.device.context, stream.handle)?);
        Ok(())
    }

    fn join(&self, stream: &Stream) -> Result<()> {
        let _entered = self.enter()?;
        let done = Event::record(self.device.context, stream.handle)?;
        self.caller.wait_for(&done)
    }

    fn drain(&self, stream: &Stream) -> Result<()> {
        let _entered = self.enter()?;
        stream.synchronize()
    }
}

impl ReadBack for Cuda {
    fn copy_back(
        &self,
        stream: &Stream,
        staging: &mut Pinned,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()> {
        let _entered = self.enter()?;
        let source = self.memories[memory] + offset;
        // SAFETY: `new`'s caller vouched for the memory. The bytes stay untouched until the event of `mark_busy` says
        // that the copy is done, or the stream is drained.
        unsafe { driver::copy_from_device(&mut staging.bytes()[range], source, stream.handle) }
    }
}
