//! The stream in whose order a load's memory is used: only the thread that loads touches it, in the context that is
//! current there. The same handle may mean another stream in another thread, or in another context.

use super::handles::{Context, Entered, Event, Handle, Primary, Relaxed};
use crate::error::Result;

/// The caller's stream, and the point that it had reached.
#[derive(Debug)]
pub(super) struct Caller {
    handle: Handle,
    context: Context,
    /// Behind what is queued on the stream, when the load began or [`Caller::mark`] was called.
    reached: Event,
}

impl Caller {
    /// Refuses a stream that is being captured.
    ///
    /// # Safety
    /// As for [`Handle::of`]; on the thread whose stream it is.
    pub(super) unsafe fn new(device: &Primary, address: usize) -> Result<Self> {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { Handle::of(address) };
        let context = device.context_here()?;
        let _entered = Entered::new(context)?;
        handle.refuse_capture()?;
        let reached = Event::new(context)?;
        reached.record(handle)?;
        Ok(Self { handle, context, reached })
    }

    /// Moves the point to what is queued by now. On the thread whose stream it is.
    pub(super) fn mark(&self) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        self.reached.record(self.handle)
    }

    /// Makes `stream` wait for the point; on any thread.
    pub(super) fn hold(&self, stream: Handle) -> Result<()> {
        stream.wait_for(&self.reached)
    }

    /// Makes the caller's stream wait for `event`. On the thread whose stream it is.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        self.handle.wait_for(event)
    }
}

/// Whether the stream at `address` of device `ordinal` means another one in other threads: their own default streams, or
/// those of the contexts that they are in.
///
/// # Errors
/// As [`Cuda::new`](super::Cuda::new).
///
/// # Safety
/// As there.
pub unsafe fn is_bound_to_thread(ordinal: i32, address: usize) -> Result<bool> {
    let device = super::kept().device(ordinal)?;
    // SAFETY: the caller vouches for it.
    let handle = unsafe { Handle::of(address) };
    let context = device.primary.context_here()?;
    let _entered = Entered::new(context)?;
    handle.refuse_capture()?;
    Ok(handle.is_of_thread() || (handle.is_of_context() && context != device.primary.context))
}

/// Refuses a stream that is being captured, and lets this thread allocate while another captures.
///
/// # Errors
/// As [`Cuda::new`](super::Cuda::new).
///
/// # Safety
/// As there.
pub unsafe fn begin(ordinal: i32, address: usize) -> Result<Relaxed> {
    // SAFETY: the caller vouches for it.
    let handle = unsafe { Handle::of(address) };
    let device = super::kept().device(ordinal)?;
    let relaxed = Relaxed::new()?; // to be restored last
    let _entered = Entered::new(device.primary.context_here()?)?;
    handle.refuse_capture()?;
    Ok(relaxed)
}
