//! The stores of the library beside the one that this code is in.

use std::{
    ffi::{CStr, c_void},
    fmt,
    path::Path,
    ptr::{self, NonNull},
    slice,
    sync::{Arc, OnceLock},
};

use serde::de::DeserializeOwned;

use super::{
    Entry, Object, Opening, Stores, Traffic, Upload,
    table::{Bytes, Opened, Request, Table, version},
};
use crate::{
    error::{Error, ErrorKind, Result},
    os,
    progress::Progress,
};

/// The function that gives the table.
const ENTRY: &CStr = c"flashpack_remote";
/// The file that has it.
const FILE: &str = "libflashpack_remote.so";

/// A table of functions that stay where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library(Table);

impl Library {
    /// The library that lies beside this one, opened once.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: there is none, or it is of another version.
    pub(super) fn beside() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
        LIBRARY.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// # Errors
    /// The table is of another version.
    fn of(table: &Table) -> Result<Self> {
        if table.version == version() {
            return Ok(Self(*table));
        }
        let theirs = String::from_utf8_lossy(&table.version).trim_end_matches('\0').to_owned();
        let ours = env!("CARGO_PKG_VERSION");
        let what = format!("is of flashpack {theirs}, but this is flashpack {ours}: install flashpack again");
        Err(Error::new(ErrorKind::Unsupported, what))
    }

    fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let request = serde_json::to_vec(request).map_err(|error| defect(&error))?;
        let request = Bytes { data: request.as_ptr().cast_mut(), len: request.len() };
        // SAFETY: the request is only read; `reply` is writable, and `watched` lasts.
        let reply = self.answered(|watched, reply| unsafe { (self.0.call)(request, watched, reply) })?;
        serde_json::from_slice(&reply).map_err(|error| defect(&error))
    }

    /// Whatever `function` replies, as it is or as the error that it is. It gets the words that this thread is watched by,
    /// and where its reply belongs.
    fn answered(&self, function: impl FnOnce(*mut i64, *mut Bytes) -> i32) -> Result<Vec<u8>> {
        let mut reply = Bytes { data: ptr::null_mut(), len: 0 };
        let status = Progress::here(|watcher| function(watcher.as_ptr(), &raw mut reply));
        let bytes = if reply.data.is_null() {
            Vec::new()
        } else {
            // SAFETY: the function has set both; the reply is not freed yet.
            unsafe { slice::from_raw_parts(reply.data, reply.len) }.to_vec()
        };
        // SAFETY: the reply is the table's own, and is freed once.
        unsafe { (self.0.free)(reply) };
        if status == 0 {
            return Ok(bytes);
        }
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|error| defect(&error)))
    }
}

fn defect(error: &serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("{FILE} was misunderstood: {error}"))
}

impl Stores for Library {
    fn open(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>> {
        let request = Request::Open { url: url.to_owned(), opening: opening.clone() };
        Ok(Arc::new(Handle { library: *self, opened: self.call(&request)? }))
    }

    fn list(&self, url: &str, deep: bool) -> Result<Vec<Entry>> {
        self.call(&Request::List { url: url.to_owned(), deep })
    }

    fn pinned(&self, url: &str) -> Result<String> {
        self.call(&Request::Pinned { url: url.to_owned() })
    }

    fn remove(&self, url: &str) -> Result<()> {
        self.call(&Request::Remove { url: url.to_owned() })
    }

    fn create(&self, url: &str, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        let opened: Opened = self.call(&Request::Create { url: url.to_owned(), expected_bytes })?;
        Ok(Box::new(Begun { library: *self, upload: Some(opened.number) }))
    }
}

/// An object of the other library.
struct Handle {
    library: Library,
    opened: Opened,
}

impl Object for Handle {
    fn len(&self) -> u64 {
        self.opened.bytes
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let buffers: Vec<_> =
            buffers.iter_mut().map(|buffer| Bytes { data: buffer.as_mut_ptr(), len: buffer.len() }).collect();
        let (object, read, buffers) = (self.opened.number, self.library.0.read, &*buffers);
        // SAFETY: the buffers are ours alone until the call returns; the rest is as in `Library::call`.
        let read =
            |watched, reply| unsafe { read(object, buffers.as_ptr(), buffers.len(), offset, watched, reply) };
        self.library.answered(read)?;
        Ok(())
    }

    fn distrust(&self, offset: u64, bytes: u64) {
        let _ = self.library.call::<()>(&Request::Distrust { object: self.opened.number, offset, bytes });
    }

    fn traffic(&self) -> Traffic {
        self.library.call(&Request::Traffic { object: self.opened.number }).unwrap_or_default()
    }

    fn note(&self) -> Option<String> {
        self.library.call(&Request::Note { object: self.opened.number }).unwrap_or_default()
    }

    fn pinned(&self) -> Option<String> {
        self.opened.pinned.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.library.call::<()>(&Request::Close { object: self.opened.number });
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.opened).finish()
    }
}

/// An upload of the other library; none after its end.
#[derive(Debug)]
struct Begun {
    library: Library,
    upload: Option<u64>,
}

impl Upload for Begun {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes = Bytes { data: bytes.as_ptr().cast_mut(), len: bytes.len() };
        let (upload, write) = (self.upload.unwrap_or_default(), self.library.0.write);
        // SAFETY: the bytes are only read, and stay until the call returns; the rest is as in `Library::call`.
        let write = |watched, reply| unsafe { write(upload, bytes, watched, reply) };
        self.library.answered(write)?;
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        self.library.call(&Request::Seal { upload: self.upload.unwrap_or_default() })
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let upload = self.upload.take().unwrap_or_default();
        self.library.call(&Request::Finish { upload })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            let _ = self.library.call::<()>(&Request::Abandon { upload });
        }
    }
}

/// Opens the library.
fn open() -> Result<Library> {
    let missing = |path: &Path| {
        let what = "is missing, and without it this build opens no URLs: on Linux, install flashpack's wheel or build \
                    the crate with the feature `remote`";
        Error::new(ErrorKind::Unsupported, what).at(path)
    };
    let path = os::own_folder().unwrap_or_default().join(FILE);
    if !path.is_file() {
        return Err(missing(&path));
    }
    let refused = |error: Error| error.at(&path);
    let table = entry(&path).map_err(refused)?;
    Library::of(table).map_err(refused)
}

/// The table of the library at `path`, which is never closed.
fn entry(path: &Path) -> Result<&'static Table> {
    let refused = |error| Error::new(ErrorKind::Unsupported, format!("cannot be opened: {error}"));
    let found = os::function_of(path, ENTRY).map_err(refused)?;
    // SAFETY: the function of this name takes nothing, and gives a table that is its for good.
    let table = unsafe {
        let entry = std::mem::transmute::<NonNull<c_void>, extern "C" fn() -> *const Table>(found);
        entry().as_ref()
    };
    table.ok_or_else(|| Error::new(ErrorKind::Internal, "gives no functions"))
}

#[cfg(feature = "remote")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_another_version_is_refused() {
        let mut table = crate::bindings::remote::TABLE;
        assert!(Library::of(&table).is_ok());
        table.version[0] = b'9';
        let error = Library::of(&table).unwrap_err();
        assert!(error.to_string().contains("is of flashpack 9."), "{error}");
    }

    #[test]
    fn without_the_library_urls_are_not_supported() {
        let error = Library::beside().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(FILE), "{error}");
    }

    #[test]
    fn errors_cross_the_table_whole() {
        let library = Library::of(&crate::bindings::remote::TABLE).unwrap();
        let url = "http://user:secret@127.0.0.1:1/x?signature=secret";
        let error = library.open(url, &Opening::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let text = error.to_string();
        assert!(text.starts_with("http://127.0.0.1:1/x: ") && !text.contains("secret"), "{text}");
        assert_eq!(library.list("ftp://x/", false).unwrap_err().kind(), ErrorKind::Argument);
    }
}
