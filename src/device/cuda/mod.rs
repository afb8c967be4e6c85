//! CUDA through its driver API, found at run time. torch owns the device's memory, its context and the caller's
//! stream; this engine owns staging buffers, copy streams and events.

mod driver;
mod pinned;

use std::{ops::Range, ptr};

use cudarc::driver::{result, sys};

use self::driver::{Entered, Event, failed, require_driver};
pub use self::{
    driver::Stream,
    pinned::{Pinned, fell_back_to_pageable, pinned},
};
use super::{Device, Staging, fetch::ReadBack};
use crate::error::Result;

/// A device's memories that torch allocated, to be filled in the order of the caller's stream.
#[derive(Debug)]
pub struct Cuda {
    context: sys::CUcontext,
    device: sys::CUdevice,
    caller: sys::CUstream,
    /// Recorded on the caller's stream when the load began.
    allocated: Event,
    memories: Vec<sys::CUdeviceptr>,
}

// SAFETY: contexts, streams and events are handles that the driver lets any thread use; nothing here is mutated.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

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
        require_driver()?;
        let device = result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
        // SAFETY: the device exists. The primary context is torch's own; it is released when the value is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        let caller = ptr::with_exposed_provenance_mut(caller);
        let entered = Entered::new(context);
        let allocated = entered.and_then(|_entered| Event::record(context, caller));
        match allocated {
            Ok(allocated) => Ok(Self { context, device, caller, allocated, memories }),
            Err(error) => {
                // SAFETY: retained above, and nothing else was made of it.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(error)
            }
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: retained once, in `new`. Buffers and streams of this load may outlive the value, but torch, whose
        // context it is, keeps it for the process's life.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Device for Cuda {
    type Staging = Pinned;
    type Stream = Stream;

    fn stage(&self, bytes: usize) -> Result<Pinned> {
        let _entered = Entered::new(self.context)?;
        Pinned::new(self.context, bytes)
    }

    fn stream(&self) -> Result<Stream> {
        let _entered = Entered::new(self.context)?;
        let stream = Stream::new(self.context)?;
        // SAFETY: both handles are alive, of this context.
        unsafe { sys::cuStreamWaitEvent(stream.raw, self.allocated.raw, 0) }
            .result()
            .map_err(|error| failed("cuStreamWaitEvent", error))?;
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
        let _entered = Entered::new(self.context)?;
        let target = self.memories[memory] + offset;
        let bytes = &staging.buffer.as_slice()[range];
        // SAFETY: the plan placed the bytes within the memory, which `new`'s caller vouched for. The source stays
        // untouched until the event of `mark_busy` says that the copy is done, or the stream is drained.
        unsafe { result::memcpy_htod_async(target, bytes, stream.raw) }
            .map_err(|error| failed("cuMemcpyHtoDAsync", error))
    }

    fn mark_busy(&self, stream: &Stream, staging: &mut Pinned) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        staging.busy = Some(Event::record(self.context, stream.raw)?);
        Ok(())
    }

    fn join(&self, stream: &Stream) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        let done = Event::record(self.context, stream.raw)?;
        // SAFETY: both handles are alive, of this context.
        unsafe { sys::cuStreamWaitEvent(self.caller, done.raw, 0) }
            .result()
            .map_err(|error| failed("cuStreamWaitEvent", error))
    }

    fn drain(&self, stream: &Stream) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(stream.raw) }
            .map_err(|error| failed("cuStreamSynchronize", error))
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
        let _entered = Entered::new(self.context)?;
        let source = self.memories[memory] + offset;
        let bytes = &mut staging.bytes()[range];
        // SAFETY: `new`'s caller vouched for the memory. The bytes stay untouched until the event of `mark_busy` says
        // that the copy is done, or the stream is drained.
        unsafe { result::memcpy_dtoh_async(bytes, source, stream.raw) }
            .map_err(|error| failed("cuMemcpyDtoHAsync", error))
    }
}
