//! The driver's contexts, streams and events.

use std::{process, ptr, sync::OnceLock};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUevent_flags, CUresult},
};

use crate::error::{Error, ErrorKind, Result};

/// A copy stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) raw: sys::CUstream,
    context: sys::CUcontext,
}

impl Stream {
    pub(super) fn new(context: sys::CUcontext) -> Result<Self> {
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
pub(super) struct Event {
    pub(super) raw: sys::CUevent,
    context: sys::CUcontext,
}

// SAFETY: the driver lets any thread use an event, in its context.
unsafe impl Send for Event {}

impl Event {
    /// The point that `stream` has reached in queueing, in `context`, which is current.
    pub(super) fn record(context: sys::CUcontext, stream: sys::CUstream) -> Result<Self> {
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

    pub(super) fn is_reached(&self) -> Result<bool> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failed("cuEventQuery", error)),
        }
    }

    pub(super) fn wait(&self) -> Result<()> {
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

/// Makes a context current on this thread for a while.
pub(super) struct Entered;

impl Entered {
    pub(super) fn new(context: sys::CUcontext) -> Result<Self> {
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
pub(super) fn require_driver() -> Result<()> {
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

pub(super) fn failed(call: &str, error: DriverError) -> Error {
    let kind = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::Memory,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("CUDA: {call} failed: {error}"))
}
