//! The library beside the one that this code is in.

use std::{
    ffi::{CStr, OsStr, c_void},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr::{self, NonNull},
};

/// The folder of the library, or program, that this function is in.
pub(crate) fn own_folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    let here = own_folder as fn() -> Option<PathBuf> as *const c_void;
    // SAFETY: `info` is writable. The name that it points to then stays while this code does.
    let name = unsafe {
        if libc::dladdr(here, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    Some(Path::new(OsStr::from_bytes(name.to_bytes())).parent()?.to_owned())
}

/// The function `name` of the library at `path`, which is never closed. To open it runs what it runs when it is opened.
pub(crate) fn function_of(path: &Path, name: &CStr) -> io::Result<NonNull<c_void>> {
    let path = [path.as_os_str().as_bytes(), b"\0"].concat();
    let path = CStr::from_bytes_with_nul(&path).map_err(io::Error::other)?;
    // SAFETY: both are texts that end with a zero; what is not null is open from here on.
    let found = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() { ptr::null_mut() } else { libc::dlsym(library, name.as_ptr()) }
    };
    NonNull::new(found).ok_or_else(|| {
        // SAFETY: what it returns, if not null, is a text that stays until this thread's next such call.
        let why = unsafe {
            let text = libc::dlerror();
            if text.is_null() { c"".to_owned() } else { CStr::from_ptr(text).to_owned() }
        };
        io::Error::other(why.to_string_lossy().into_owned())
    })
}
