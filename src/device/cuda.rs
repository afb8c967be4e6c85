//! CUDA through its driver API, found at run time. torch owns the device's memory, its context and the caller's
//! stream; this engine owns staging buffers, copy streams and events.

use std::{
    mem::ManuallyDrop,
    ops::Range,
    process, ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUevent_flags, CUresult},
};

use super::{Device, Staging, fetch::ReadBack, pool::Pool};
use crate::{
    error::{Error, ErrorKind, Result},
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
    let pool = Pool::new(super::pool::LIMIT_BYTES);
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
    /// [`ErrorKind::Unsupported`] without a CUDA driver; [`ErrorKind::Internal`] for what the driver refuses.
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

/// A copy stream.
#[derive(Debug)]
pub struct Stream {
    raw: sys::CUstream,
    context: sys::CUcontext,
}

impl Stream {
    fn new(context: sys::CUcontext) -> Result<Self> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("cuStreamCreate", error))?;
        Ok(Self { raw, context })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = Entered::new(self.context) {
            // SAFETY: created by `new`, destroyed once; the driver lets queued work finish first.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
struct Event {
    raw: sys::CUevent,
    context: sys::CUcontext,
}

// SAFETY: the driver lets any thread use an event, in its context.
unsafe impl Send for Event {}

impl Event {
    /// The point that `stream` has reached in queueing, in `context`, which is current.
    fn record(context: sys::CUcontext, stream: sys::CUstream) -> Result<Self> {
        // Sixteen readers that spin for the link would take sixteen cores.
        let flags =
            CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut raw = ptr::null_mut();
        // SAFETY: writes the handle of a new event of the current context.
        let event = unsafe { sys::cuEventCreate(&raw mut raw, flags) }
            .result()
            .map(|()| Self { raw, context })
            .map_err(|error| failed("cuEventCreate", error))?;
        // SAFETY: the event is new and the stream alive, both of the current context.
        unsafe { result::event::record(event.raw, stream) }
            .map_err(|error| failed("cuEventRecord", error))?;
        Ok(event)
    }

    fn is_reached(&self) -> Result<bool> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failed("cuEventQuery", error)),
        }
    }

    fn wait(&self) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.raw) }.map_err(|error| failed("cuEventSynchronize", error))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = Entered::new(self.context) {
            // SAFETY: created by `record`, destroyed once; the driver defers that until the event is reached.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

/// Page-locked host memory, which the device copies from by itself while the host goes on; ordinary memory where the
/// system refuses to lock.
///
/// It is this process's own memory, registered: on huge pages there are 512 times fewer of them to make and to lock than
/// in memory of the driver's.
#[derive(Debug)]
pub struct Pinned {
    buffer: ManuallyDrop<HostBuffer>,
    /// Where the buffer is registered.
    context: Option<sys::CUcontext>,
    busy: Option<Event>,
}

// SAFETY: the memory is owned, and contexts are handles that the driver lets any thread use.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Memory of `context`, which is current.
    fn new(context: sys::CUcontext, bytes: usize) -> Result<Self> {
        let mut buffer = HostBuffer::new(bytes)?;
        buffer.keep_from_children();
        // SAFETY: the buffer's own bytes, registered once; portable memory is pinned for every context.
        let locked = unsafe {
            sys::cuMemHostRegister_v2(buffer.data().cast(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE)
        };
        let pinned = match locked.result() {
            Ok(()) => true,
            Err(error) if is_pinning_refused(error) => {
                PAGEABLE.store(true, Ordering::Relaxed);
                false
            }
            Err(error) => return Err(failed("cuMemHostRegister", error)),
        };
        Ok(Self { buffer: ManuallyDrop::new(buffer), context: pinned.then_some(context), busy: None })
    }

    fn unregister(&mut self) -> Result<()> {
        let Some(context) = self.context else {
            return Ok(());
        };
        let _entered = Entered::new(context)?;
        // SAFETY: registered by `new`, once, and no copy reads it any more.
        unsafe { sys::cuMemHostUnregister(self.buffer.data().cast()) }
            .result()
            .map_err(|error| failed("cuMemHostUnregister", error))
    }
}

/// Whether the system has no memory to lock just now, or never lets this process have any.
fn is_pinning_refused(error: DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_OUT_OF_MEMORY
            | CUresult::CUDA_ERROR_NOT_PERMITTED
            | CUresult::CUDA_ERROR_NOT_SUPPORTED
    )
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

/// Makes a context current on this thread for a while.
struct Entered;

impl Entered {
    fn new(context: sys::CUcontext) -> Result<Self> {
        // SAFETY: the context is alive: torch's primary context, which is never destroyed before the process ends.
        unsafe { sys::cuCtxPushCurrent_v2(context) }
            .result()
            .map_err(|error| failed("cuCtxPushCurrent", error))?;
        Ok(Self)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: undoes the push of `new`, on the same thread, as the value is neither Send nor kept.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

/// # Errors
/// [`ErrorKind::Unsupported`], saying what to do, if there is no driver, or if this process is a child made by `fork`
/// after the driver was started: a driver works only where it was.
fn require_driver() -> Result<()> {
    static DRIVER: OnceLock<(u32, std::result::Result<(), String>)> = OnceLock::new();
    let (started_in, driver) = DRIVER.get_or_init(|| (process::id(), start_driver()));
    if *started_in != process::id() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "CUDA was used before this process was forked, and does not work in it: load on the CPU, or start \
             processes by multiprocessing's \"spawn\"",
        ));
    }
    driver.clone().map_err(|why| Error::new(ErrorKind::Unsupported, why))
}

fn start_driver() -> std::result::Result<(), String> {
    // SAFETY: looks for the driver's library and loads it, as torch has done before.
    if !unsafe { sys::is_culib_present() } {
        return Err("the CUDA driver (libcuda.so.1) was not found: install NVIDIA's driver".to_owned());
    }
    result::init().map_err(|error| format!("the CUDA driver refused to start: {error}"))
}

fn failed(call: &str, error: DriverError) -> Error {
    let kind = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::Memory,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("CUDA: {call} failed: {error}"))
}
