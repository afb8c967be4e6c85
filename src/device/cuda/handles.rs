//! The driver's contexts, streams and events, and the calls that take them.

use std::{
    ffi::CStr,
    hint,
    marker::PhantomData,
    ptr,
    time::{Duration, Instant},
};

use super::driver::{
    CUcontext, CUdevice, CUevent, CUstream, NON_BLOCKING, NOT_CAPTURING, NOT_READY, PORTABLE, REFUSED,
    RELAXED, SLEEPING, c_char, c_uint, check, driver,
};
use crate::{
    error::{Error, ErrorKind, Result},
    numa::{Node, Nodes},
};

/// How long a wait asks before it sleeps: to be woken takes longer than that.
const SPIN: Duration = Duration::from_micros(20);

/// A context that lives as long as it is used: a device's primary one, or one that the calling thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context(CUcontext);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The primary context of a device, which stays as long as this does.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) context: Context,
    /// The NUMA node that the device is attached to.
    pub(super) node: Option<Node>,
    device: CUdevice,
}

impl Primary {
    pub(super) fn of(ordinal: i32) -> Result<Self> {
        let driver = driver()?;
        let (mut device, mut context) = (0, ptr::null_mut());
        // SAFETY: writes the number of a device, if there is one.
        check("cuDeviceGet", unsafe { (driver.cuDeviceGet)(&raw mut device, ordinal) })?;
        // SAFETY: the device exists; writes its context, which is released once, below.
        let status = unsafe { (driver.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        check("cuDevicePrimaryCtxRetain", status)?;
        Ok(Self { context: Context(context), node: node_of(device), device })
    }

    /// The context that is current on this thread, if it is one of this device; else the primary one.
    pub(super) fn context_here(&self) -> Result<Context> {
        let driver = driver()?;
        let (mut current, mut device) = (ptr::null_mut(), 0);
        // SAFETY: writes the context, or null.
        check("cuCtxGetCurrent", unsafe { (driver.cuCtxGetCurrent)(&raw mut current) })?;
        // SAFETY: writes the device of the current context; there is one, or the call is not made.
        let known = !current.is_null() && unsafe { (driver.cuCtxGetDevice)(&raw mut device) } == 0;
        Ok(if known && device == self.device { Context(current) } else { self.context })
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            // SAFETY: retained once, in `of`. Buffers of other loads may outlive the value, but torch, whose context it
            // is, keeps it for the process's life.
            unsafe { (driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

/// The NUMA node that a device is attached to; on a machine with one, nobody is asked.
fn node_of(device: CUdevice) -> Option<Node> {
    let driver = driver().ok().filter(|_| Nodes::here().are_several())?;
    let mut text = [0_u8; 32];
    // SAFETY: writes a text that ends in NUL, of no more bytes than it is told.
    let status = unsafe { (driver.cuDeviceGetPCIBusId)(text.as_mut_ptr().cast::<c_char>(), 32, device) };
    let bus_id = CStr::from_bytes_until_nul(&text).ok().filter(|_| status == 0)?;
    Nodes::here().of_device(bus_id.to_str().ok()?)
}

/// Lets this thread make calls that a capture of another thread forbids by default, for a while: none of the engine's
/// has to do with what is captured.
#[derive(Debug)]
pub struct Relaxed {
    before: c_uint,
    /// Not `Send`: what it restores belongs to this thread.
    here: PhantomData<*const ()>,
}

impl Relaxed {
    /// # Errors
    /// As [`Cuda::new`](super::Cuda::new).
    pub fn new() -> Result<Self> {
        Ok(Self { before: Self::exchange(RELAXED)?, here: PhantomData })
    }

    fn exchange(mut mode: c_uint) -> Result<c_uint> {
        // SAFETY: reads and writes one of the numbers of the modes.
        let status = unsafe { (driver()?.cuThreadExchangeStreamCaptureMode)((&raw mut mode).cast()) };
        check("cuThreadExchangeStreamCaptureMode", status).map(|()| mode)
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        let _ = Self::exchange(self.before);
    }
}

/// Makes a context current on this thread for a while, with [`Relaxed`] captures.
#[derive(Debug)]
pub struct Entered {
    _relaxed: Relaxed,
}

impl Entered {
    pub(super) fn new(context: Context) -> Result<Self> {
        let relaxed = Relaxed::new()?;
        // SAFETY: the context is alive.
        check("cuCtxPushCurrent", unsafe { (driver()?.cuCtxPushCurrent_v2)(context.0) })?;
        Ok(Self { _relaxed: relaxed })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        if let Ok(driver) = driver() {
            // SAFETY: undoes the push of `new`, on the same thread, as the value is not Send.
            unsafe { (driver.cuCtxPopCurrent_v2)(&raw mut popped) };
        }
    }
}

/// A stream of anybody's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(CUstream);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// # Safety
    /// `address` is a stream that is alive whenever the value is used, or one of the default streams, 0 to 2.
    pub(super) unsafe fn of(address: usize) -> Self {
        Self(ptr::with_exposed_provenance_mut(address))
    }

    /// Whether it stands for a default stream of the context that is current.
    pub(super) fn is_of_context(self) -> bool {
        self.0.addr() <= 1
    }

    /// Whether it stands for the default stream of the thread that uses it.
    pub(super) fn is_of_thread(self) -> bool {
        self.0.addr() == 2
    }

    /// Makes what is queued on the stream from here on wait for `event`.
    pub(super) fn wait_for(self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        check("cuStreamWaitEvent", unsafe { (driver()?.cuStreamWaitEvent)(self.0, event.raw, 0) })
    }

    /// Refuses a stream that is being captured, in the context that is current.
    pub(super) fn refuse_capture(self) -> Result<()> {
        let mut status = NOT_CAPTURING;
        // SAFETY: the stream is alive; writes one of the numbers of the states.
        let asked = unsafe { (driver()?.cuStreamIsCapturing)(self.0, (&raw mut status).cast()) };
        check("cuStreamIsCapturing", asked)?;
        if status == NOT_CAPTURING {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the current CUDA stream is being captured into a graph, which cannot hold a load or a save: do it before \
             the capture, or on another stream",
        ))
    }
}

/// A copy stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) handle: Handle,
    pub(super) context: Context,
    /// Recorded by whoever wants others to wait for what is queued: they may wait for more, never for less.
    pub(super) end: Event,
}

impl Stream {
    /// A stream of `context`, which is current.
    pub(super) fn new(context: Context) -> Result<Self> {
        let end = Event::new(context)?;
        let mut raw = ptr::null_mut();
        // SAFETY: writes the handle of a new stream of the current context.
        check("cuStreamCreate", unsafe { (driver()?.cuStreamCreate)(&raw mut raw, NON_BLOCKING) })?;
        Ok(Self { handle: Handle(raw), context, end })
    }

    /// Waits until all that is queued on it is over.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { (driver()?.cuStreamSynchronize)(self.handle.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Ok(driver), Ok(_entered)) = (driver(), Entered::new(self.context)) {
            // SAFETY: created by `new`, destroyed once; the driver lets queued work finish first.
            unsafe { (driver.cuStreamDestroy_v2)(self.handle.0) };
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event {
    raw: CUevent,
    pub(super) context: Context,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event of `context`, which is current.
    pub(super) fn new(context: Context) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: writes the handle of a new event of the current context.
        check("cuEventCreate", unsafe { (driver()?.cuEventCreate)(&raw mut raw, SLEEPING) })?;
        Ok(Self { raw, context })
    }

    /// Makes it the point that `stream`, of the same context, has reached in queueing.
    pub(super) fn record(&self, stream: Handle) -> Result<()> {
        // SAFETY: both handles are alive.
        check("cuEventRecord", unsafe { (driver()?.cuEventRecord)(self.raw, stream.0) })
    }

    /// Whether the device is past it; in any context.
    pub(super) fn is_reached(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { (driver()?.cuEventQuery)(self.raw) } {
            NOT_READY => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Waits until it is; in any context.
    pub(super) fn wait(&self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < SPIN {
            if self.is_reached()? {
                return Ok(());
            }
            hint::spin_loop();
        }
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { (driver()?.cuEventSynchronize)(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let (Ok(driver), Ok(_entered)) = (driver(), Entered::new(self.context)) {
            // SAFETY: created by `new`, destroyed once; the driver defers that until the event is reached.
            unsafe { (driver.cuEventDestroy_v2)(self.raw) };
        }
    }
}

/// Locks memory for the device, in the current context and for every other. False where the system refuses.
///
/// # Safety
/// The memory stays where it is until [`unlock`].
pub(super) unsafe fn lock(data: *mut u8, bytes: usize) -> Result<bool> {
    // SAFETY: the caller's own bytes.
    let status = unsafe { (driver()?.cuMemHostRegister_v2)(data.cast(), bytes, PORTABLE) };
    if REFUSED.contains(&status) {
        return Ok(false);
    }
    check("cuMemHostRegister", status).map(|()| true)
}

/// Undoes [`lock`], in the same context, which is current.
///
/// # Safety
/// The memory is locked, and no copy uses it any more.
pub(super) unsafe fn unlock(data: *mut u8) -> Result<()> {
    // SAFETY: the caller vouches for it.
    check("cuMemHostUnregister", unsafe { (driver()?.cuMemHostUnregister)(data.cast()) })
}

/// Queues a copy of `bytes` to the device's memory at `target`.
///
/// # Safety
/// As many bytes may be written there, and `bytes` stay as they are until the copy is done.
pub(super) unsafe fn copy_to_device(target: u64, bytes: &[u8], stream: Handle) -> Result<()> {
    let driver = driver()?;
    // SAFETY: the caller vouches for both memories; the stream is alive.
    let status =
        unsafe { (driver.cuMemcpyHtoDAsync_v2)(target, bytes.as_ptr().cast(), bytes.len(), stream.0) };
    check("cuMemcpyHtoDAsync", status)
}

/// Queues a copy of the device's memory at `source` to `bytes`.
///
/// # Safety
/// As many bytes may be read there, and nobody else uses `bytes` until the copy is done.
pub(super) unsafe fn copy_from_device(bytes: &mut [u8], source: u64, stream: Handle) -> Result<()> {
    let driver = driver()?;
    // SAFETY: the caller vouches for both memories; the stream is alive.
    let status =
        unsafe { (driver.cuMemcpyDtoHAsync_v2)(bytes.as_mut_ptr().cast(), source, bytes.len(), stream.0) };
    check("cuMemcpyDtoHAsync", status)
}
