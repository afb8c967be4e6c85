//! CUDA through its driver API, found at run time. torch owns the device's memory, its context and the caller's
//! stream; this engine owns staging buffers, copy streams and events.

mod caller;
mod driver;
mod handles;
mod kept;
mod pinned;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use self::{
    caller::Caller,
    kept::{KeptDevice, STREAMS, kept},
};
pub use self::{
    caller::{begin, is_bound_to_thread},
    handles::{Entered, Relaxed, Stream},
    kept::{pinned, release, usage},
    pinned::{Pinned, fell_back_to_pageable},
};
use super::{Device, Staging, fetch::ReadBack};
use crate::{
    error::Result,
    numa::{Node, Nodes},
};

/// A device's memories that torch allocated, to be filled in the order of the caller's stream.
#[derive(Debug)]
pub struct Cuda {
    device: Arc<KeptDevice>,
    caller: Caller,
    /// The copy streams that lanes have been given: bit `n` stands for number `n`.
    used: AtomicUsize,
    memories: Vec<u64>,
}

impl Cuda {
    /// Prepares to fill `memories`, addresses on device `ordinal`, after what is queued on stream `caller`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a CUDA driver, and while the stream is being
    /// captured; [`ErrorKind::Internal`](crate::ErrorKind::Internal) for what the driver refuses.
    ///
    /// # Safety
    /// `caller` is a stream of that device, as this thread has it, or a default stream, 0 to 2, and lives as long as the
    /// value, which this thread drops. The memories may be written to until then, as far as the copies that will be
    /// queued reach.
    pub unsafe fn new(ordinal: i32, caller: usize, memories: Vec<u64>) -> Result<Self> {
        let device = kept().device(ordinal)?;
        // SAFETY: the caller vouches for it.
        let caller = unsafe { Caller::new(&device.primary, caller) }?;
        Ok(Self { device, caller, used: AtomicUsize::new(0), memories })
    }

    fn join_one(&self, stream: &Stream) -> Result<()> {
        let _entered = self.enter()?;
        stream.end.record(stream.handle)?;
        self.caller.wait_for(&stream.end)
    }
}

impl Device for Cuda {
    type Entered = Entered;
    type Staging = Pinned;
    type Stream = Arc<Stream>;

    fn node(&self) -> Option<Node> {
        self.device.primary.node
    }

    fn staging_node(&self) -> Option<Node> {
        Nodes::here().confining()
    }

    fn enter(&self) -> Result<Entered> {
        Entered::new(self.device.primary.context)
    }

    fn stage(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(self.device.primary.context, bytes)
    }

    fn stream(&self) -> Result<Arc<Stream>> {
        let number = self.device.next_number();
        let stream = self.device.stream(number)?;
        self.used.fetch_or(1 << number, Ordering::Relaxed);
        self.caller.hold(stream.handle)?;
        Ok(stream)
    }

    fn copy(
        &self,
        stream: &Arc<Stream>,
        staging: &Pinned,
        range: Range<usize>,
        memory: usize,
        offset: u64,
    ) -> Result<()> {
        let target = self.memories[memory] + offset;
        // SAFETY: the plan placed the bytes within the memory, which `new`'s caller vouched for. The source stays
        // untouched until the event of `mark_busy` says that the copy is done, or the stream is drained.
        unsafe { handles::copy_to_device(target, &staging.buffer.as_slice()[range], stream.handle) }
    }

    fn mark_busy(&self, stream: &Arc<Stream>, staging: &mut Pinned) -> Result<()> {
        staging.mark(stream)
    }

    fn drain(&self, stream: &Arc<Stream>) -> Result<()> {
        stream.synchronize()
    }

    fn join(&self) -> Result<()> {
        let used = self.used.load(Ordering::Relaxed);
        let streams = (0..STREAMS).filter(|number| used >> number & 1 == 1);
        let join = |number: usize| {
            let stream = self.device.stream(number)?;
            self.join_one(&stream).inspect_err(|_| drop(stream.synchronize()))
        };
        streams.map(join).fold(Ok(()), Result::and)
    }
}

impl ReadBack for Cuda {
    fn follow(&self, stream: &Arc<Stream>) -> Result<()> {
        self.caller.mark()?;
        self.caller.hold(stream.handle)
    }

    fn copy_back(
        &self,
        stream: &Arc<Stream>,
        staging: &mut Pinned,
        range: Range<usize>,
        source: u64,
    ) -> Result<()> {
        // SAFETY: the caller of [`Fetcher::fetch`](super::fetch::Fetcher::fetch) vouched for the memory. The bytes stay
        // untouched until the event of `mark_busy` says that the copy is done, or the stream is drained.
        unsafe { handles::copy_from_device(&mut staging.bytes()[range], source, stream.handle) }
    }
}
