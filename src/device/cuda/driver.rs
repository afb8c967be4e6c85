//! The CUDA driver: how it is found, and its functions. Types and signatures are cudarc's, which no other file names.
//!
//! cudarc's own loader opens `libcuda.so` before `libcuda.so.1`: where the toolkit's stub is in the library path, that
//! answers. It panics over a function that the driver lacks, too. So the functions are looked up here.

pub(super) use std::ffi::{c_char, c_uint};
use std::{
    ffi::{CStr, c_int, c_void},
    mem, process, ptr,
    sync::OnceLock,
};

use cudarc::driver::sys::{
    self, CUdeviceptr, CUevent_flags, CUresult, CUstream_flags, CUstreamCaptureMode, CUstreamCaptureStatus,
};
pub(super) use cudarc::driver::sys::{
    CU_MEMHOSTREGISTER_PORTABLE as PORTABLE, CUcontext, CUdevice, CUevent, CUstream,
};

use crate::error::{Error, ErrorKind, Result};

/// What the engine opens: the name that driver libraries are installed by, and the toolkit's stubs are not.
const LIBRARY: &CStr = c"libcuda.so.1";

/// A stream that others do not wait for unless they are told to.
pub(super) const NON_BLOCKING: c_uint = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
/// An event that tells no time, and whose waits sleep: readers that spin for the link would take as many cores.
pub(super) const SLEEPING: c_uint =
    CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint | CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint;
pub(super) const NOT_READY: c_uint = CUresult::CUDA_ERROR_NOT_READY as c_uint;
/// What a thread is told that may make any call, whatever other threads capture.
pub(super) const RELAXED: c_uint = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED as c_uint;
pub(super) const NOT_CAPTURING: c_uint = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as c_uint;
/// What pinning says where the system has no memory to lock just now, or never lets this process have any.
pub(super) const REFUSED: [c_uint; 3] = [
    CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_uint,
    CUresult::CUDA_ERROR_NOT_PERMITTED as c_uint,
    CUresult::CUDA_ERROR_NOT_SUPPORTED as c_uint,
];

/// Makes a struct of functions, each as cudarc declares it but for the result: a number, as newer drivers have errors
/// that cudarc does not list.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[expect(non_snake_case, reason = "the driver's names")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> c_uint,)*
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

        // SAFETY: only types, nothing is called: each signature above is the one that cudarc has of the driver's header.
        $(const _: unsafe fn($($argument),*) -> CUresult = sys::$name;)*
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorString(CUresult, *mut *const c_char);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxGetCurrent(*mut CUcontext);
    cuCtxGetDevice(*mut CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuStreamIsCapturing(CUstream, *mut CUstreamCaptureStatus);
    cuThreadExchangeStreamCaptureMode(*mut CUstreamCaptureMode);
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
pub(super) fn driver() -> Result<&'static Functions> {
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
pub(super) fn check(call: &str, status: c_uint) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let out_of_memory = status == CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_uint;
    let kind = if out_of_memory { ErrorKind::Memory } else { ErrorKind::Internal };
    Err(Error::new(kind, format!("CUDA: {call} failed: {}", driver()?.text_of(status))))
}
