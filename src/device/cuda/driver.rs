//! The CUDA driver: found, its functions, and the handles that the engine makes by them. Types and signatures are
//! cudarc's, which no other file names.
//!
//! cudarc's own loader opens `libcuda.so` before `libcuda.so.1`: where the toolkit's stub is in the library path, that
//! answers. It panics over a function that the driver lacks, too. So the functions are looked up here.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    marker::PhantomData,
    mem, process, ptr,
    sync::OnceLock,
};

use cudarc::driver::sys::{
    self, CU_MEMHOSTREGISTER_PORTABLE, CUcontext, CUdevice, CUdeviceptr, CUevent, CUevent_flags, CUresult,
    CUstream, CUstream_flags,
};

use crate::error::{Error, ErrorKind, Result};

/// What the engine opens: the name that driver libraries are installed by, and the toolkit's stubs are not.
const LIBRARY: &CStr = c"libcuda.so.1";

/// Makes a struct of functions, each as cudarc declares it but for the result: a number, as newer drivers have errors
/// that cudarc does not list.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[expect(non_snake_case, reason = "the driver's names")]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> c_uint,)*
        }

        impl Functions {
            /// # Safety
            /// `library` is an open driver.
            unsafe fn of(library: *mut c_void) -> std::result::Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: a function of this name has this signature in every driver; see below.
                        $name: unsafe {
                            mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_uint>(
                                function(library, concat!(stringify!($name), "\0"))?,
                            )
                        },
                    )*
                })
            }
        }

        $(const _: unsafe fn($($argument),*) -> CUresult = sys::$name;)*
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorString(CUresult, *mut *const c_char);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuEventSynchronize(CUevent);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
}

/// The driver's function of this name, which ends in NUL.
///
/// # Safety
/// `library` is open.
unsafe fn function(library: *mut c_void, name: &str) -> std::result::Result<*mut c_void, String> {
    // SAFETY: the library is open, and the name ends in NUL.
    let found = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    let lacking = || format!("the CUDA driver lacks {}: install a newer one", name.trim_end_matches('\0'));
    if found.is_null() { Err(lacking()) } else { Ok(found) }
}

/// The driver's functions.
///
/// # Errors
/// [`ErrorKind::Unsupported`], saying what to do, if there is no driver, or if this process is a child made by `fork`
/// after the driver was started: a driver works only where it was.
fn driver() -> Result<&'static Functions> {
    static DRIVER: OnceLock<(u32, std::result::Result<Functions, String>)> = OnceLock::new();
    let (started_in, driver) = DRIVER.get_or_init(|| (process::id(), start()));
    if *started_in != process::id() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "CUDA was used before this process was forked, and does not work in it: load on the CPU, or start \
             processes by multiprocessing's \"spawn\"",
        ));
    }
    driver.as_ref().map_err(|why| Error::new(ErrorKind::Unsupported, why.clone()))
}

/// Opens the driver, for good, and starts it.
fn start() -> std::result::Result<Functions, String> {
    // SAFETY: opens the library that torch has opened before, or a driver, which expects to be opened.
    let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        return Err("the CUDA driver (libcuda.so.1) was not found: install NVIDIA's driver".to_owned());
    }
    // SAFETY: the library is open.
    let functions = unsafe { Functions::of(library) }?;
    // SAFETY: the driver's own first call.
    match unsafe { (functions.cuInit)(0) } {
        0 => Ok(functions),
        status if status == CUresult::CUDA_ERROR_STUB_LIBRARY as c_uint => Err(
            "the libcuda.so.1 that was found is the CUDA toolkit's stub: take its folder out of LD_LIBRARY_PATH"
                .to_owned(),
        ),
        status => Err(format!("the CUDA driver refused to start: {}", functions.text_of(status))),
    }
}

impl Functions {
    /// What the driver says an error is.
    fn text_of(&self, status: c_uint) -> String {
        let mut text = ptr::null();
        // SAFETY: only the type of the number differs, which may be an error that cudarc does not list.
        let describe = unsafe {
            mem::transmute::<
                unsafe extern "C" fn(CUresult, *mut *const c_char) -> c_uint,
                unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint,
            >(self.cuGetErrorString)
        };
        // SAFETY: writes the address of a text that is there for good; or none, or null, for what is no error.
        let known = unsafe { describe(status, &raw mut text) } == 0 && !text.is_null();
        // SAFETY: a text of the driver's, which ends in NUL.
        let text = known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        format!("{} (error {status})", text.as_deref().unwrap_or("unknown error"))
    }
}

/// What came of `call`, which returned `status`.
fn check(call: &str, status: c_uint) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let out_of_memory = status == CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_uint;
    let kind = if out_of_memory { ErrorKind::Memory } else { ErrorKind::Internal };
    Err(Error::new(kind, format!("CUDA: {call} failed: {}", driver()?.text_of(status))))
}

/// A context that is never destroyed before the process ends: a device's primary one, which torch uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context(CUcontext);

// SAFETY: a handle that the driver lets any thread use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The primary context of a device, which stays as long as this does.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) context: Context,
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
        Ok(Self { context: Context(context), device })
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            // SAFETY: retained once, in `of`. Buffers and streams of this load may outlive the value, but torch, whose
            // context it is, keeps it for the process's life.
            unsafe { (driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

/// Makes a context current on this thread for a while.
#[derive(Debug)]
pub(super) struct Entered(PhantomData<*const ()>);

impl Entered {
    pub(super) fn new(context: Context) -> Result<Self> {
        // SAFETY: the context is alive.
        check("cuCtxPushCurrent", unsafe { (driver()?.cuCtxPushCurrent_v2)(context.0) })?;
        Ok(Self(PhantomData))
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
    /// `address` is a stream of the context that is current when the value is used, or 0 for its default stream.
    pub(super) unsafe fn of(address: usize) -> Self {
        Self(ptr::with_exposed_provenance_mut(address))
    }

    /// Makes what is queued on the stream from here on wait for `event`.
    pub(super) fn wait_for(self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        check("cuStreamWaitEvent", unsafe { (driver()?.cuStreamWaitEvent)(self.0, event.raw, 0) })
    }
}

/// A copy stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) handle: Handle,
    context: Context,
}

impl Stream {
    /// A stream of `context`, which is current.
    pub(super) fn new(context: Context) -> Result<Self> {
        let mut raw = ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: writes the handle of a new stream of the current context.
        check("cuStreamCreate", unsafe { (driver()?.cuStreamCreate)(&raw mut raw, flags) })?;
        Ok(Self { handle: Handle(raw), context })
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
    context: Context,
}

// SAFETY: the driver lets any thread use an event, in its context.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// The point that `stream` has reached in queueing, in `context`, which is current.
    pub(super) fn record(context: Context, stream: Handle) -> Result<Self> {
        // Sixteen readers that spin for the link would take sixteen cores.
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint
            | CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint;
        let mut raw = ptr::null_mut();
        // SAFETY: writes the handle of a new event of the current context.
        check("cuEventCreate", unsafe { (driver()?.cuEventCreate)(&raw mut raw, flags) })?;
        let event = Self { raw, context };
        // SAFETY: the event is new and the stream alive, both of the current context.
        check("cuEventRecord", unsafe { (driver()?.cuEventRecord)(event.raw, stream.0) })?;
        Ok(event)
    }

    pub(super) fn is_reached(&self) -> Result<bool> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the event is alive.
        let status = unsafe { (driver()?.cuEventQuery)(self.raw) };
        if status == CUresult::CUDA_ERROR_NOT_READY as c_uint {
            return Ok(false);
        }
        check("cuEventQuery", status).map(|()| true)
    }

    pub(super) fn wait(&self) -> Result<()> {
        let _entered = Entered::new(self.context)?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { (driver()?.cuEventSynchronize)(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let (Ok(driver), Ok(_entered)) = (driver(), Entered::new(self.context)) {
            // SAFETY: created by `record`, destroyed once; the driver defers that until the event is reached.
            unsafe { (driver.cuEventDestroy_v2)(self.raw) };
        }
    }
}

/// Locks memory for the device, in the current context and for every other. False where the system has no memory to
/// lock just now, or never lets this process have any.
///
/// # Safety
/// The memory stays where it is until [`unlock`].
pub(super) unsafe fn lock(data: *mut u8, bytes: usize) -> Result<bool> {
    const REFUSED: [CUresult; 3] = [
        CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        CUresult::CUDA_ERROR_NOT_PERMITTED,
        CUresult::CUDA_ERROR_NOT_SUPPORTED,
    ];
    // SAFETY: the caller's own bytes.
    let status = unsafe { (driver()?.cuMemHostRegister_v2)(data.cast(), bytes, CU_MEMHOSTREGISTER_PORTABLE) };
    if REFUSED.iter().any(|refused| *refused as c_uint == status) {
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
