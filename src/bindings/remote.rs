//! The C interface of `libflashpack_remote.so`: the stores, for the library beside it.

use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    ptr, slice,
    sync::{Arc, Mutex},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{Error, ErrorKind, Result},
    progress::Progress,
    remote::{
        Object, Upload, stores,
        table::{Bytes, Opened, Request, Table, version},
    },
    sync::Unpoisoned as _,
};

/// All functions; they never unwind.
pub(crate) static TABLE: Table = Table { version: version(), call, read, write, free };

/// The [`Table`].
#[unsafe(no_mangle)]
extern "C" fn flashpack_remote() -> *const Table {
    &raw const TABLE
}

/// What callers hold by numbers, which are never given twice.
struct Held<T>(Mutex<(u64, BTreeMap<u64, T>)>);

static OBJECTS: Held<Arc<dyn Object>> = Held(Mutex::new((0, BTreeMap::new())));
static UPLOADS: Held<Box<dyn Upload>> = Held(Mutex::new((0, BTreeMap::new())));

impl<T> Held<T> {
    fn keep(&self, value: T) -> u64 {
        let mut held = self.0.lock().unpoisoned();
        held.0 += 1;
        let number = held.0;
        held.1.insert(number, value);
        number
    }

    fn take(&self, number: u64) -> Result<T> {
        let taken = self.0.lock().unpoisoned().1.remove(&number);
        taken.ok_or_else(unknown)
    }

    /// Does `work` with it, while others are free to be used.
    fn with(&self, number: u64, work: impl FnOnce(&mut T) -> Result<()>) -> Result<()> {
        let mut value = self.take(number)?;
        let done = work(&mut value);
        self.0.lock().unpoisoned().1.insert(number, value);
        done
    }
}

fn object(number: u64) -> Result<Arc<dyn Object>> {
    let held = OBJECTS.0.lock().unpoisoned();
    held.1.get(&number).cloned().ok_or_else(unknown)
}

fn unknown() -> Error {
    Error::new(ErrorKind::Internal, "nothing is open by that number")
}

fn run(request: Request) -> Result<Value> {
    match request {
        Request::Open { url, opening } => {
            let object = stores()?.open(&url, &opening)?;
            let (bytes, pinned) = (object.len(), object.pinned());
            json(&Opened { number: OBJECTS.keep(object), bytes, pinned })
        }
        Request::List { url, deep } => json(&stores()?.list(&url, deep)?),
        Request::Pinned { url } => json(&stores()?.pinned(&url)?),
        Request::Create { url, expected_bytes } => {
            let upload = stores()?.create(&url, expected_bytes)?;
            json(&Opened { number: UPLOADS.keep(upload), bytes: 0, pinned: None })
        }
        Request::Remove { url } => json(&stores()?.remove(&url)?),
        Request::Seal { upload } => json(&UPLOADS.with(upload, |open| open.seal())?),
        Request::Finish { upload } => json(&UPLOADS.take(upload)?.finish()?),
        Request::Abandon { upload } => json(&drop(UPLOADS.take(upload)?)),
        Request::Close { object } => json(&drop(OBJECTS.take(object)?)),
        Request::Distrust { object: number, offset, bytes } => json(&object(number)?.distrust(offset, bytes)),
        Request::Traffic { object: number } => json(&object(number)?.traffic()),
        Request::Note { object: number } => json(&object(number)?.note()),
    }
}

fn json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
}

/// Runs `work`, and gives what it returns as a status and a reply.
///
/// # Safety
/// `reply` is writable, and `watched` null or three words that stay until the call returns.
unsafe fn answer(watched: *mut i64, reply: *mut Bytes, work: impl FnOnce() -> Result<Value>) -> i32 {
    // SAFETY: the caller vouches for the words.
    let watched = unsafe { Progress::from_ptr(watched) };
    let caught = panic::catch_unwind(AssertUnwindSafe(|| watched.watch(work)));
    let done =
        caught.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "internal error: a panic was caught")));
    let (status, text) = match done {
        Ok(value) => (0, value.to_string()),
        Err(error) => (1, serde_json::to_string(&error).unwrap_or_default()),
    };
    let text = text.into_bytes().into_boxed_slice();
    let len = text.len();
    // SAFETY: the caller vouches for `reply`.
    unsafe { *reply = Bytes { data: Box::into_raw(text).cast(), len } };
    status
}

/// # Safety
/// The bytes are readable until the call returns; the rest is as [`answer`] says.
unsafe extern "C" fn call(request: Bytes, watched: *mut i64, reply: *mut Bytes) -> i32 {
    let work = || {
        // SAFETY: as the caller says.
        let request = unsafe { readable(request) };
        let request = serde_json::from_slice(request);
        run(request
            .map_err(|error| Error::new(ErrorKind::Internal, format!("malformed request: {error}")))?)
    };
    // SAFETY: as the caller says.
    unsafe { answer(watched, reply, work) }
}

/// # Safety
/// `buffers` points to so many, whose bytes are the call's alone until it returns; the rest is as [`answer`] says.
unsafe extern "C" fn read(
    object: u64,
    buffers: *const Bytes,
    count: usize,
    offset: u64,
    watched: *mut i64,
    reply: *mut Bytes,
) -> i32 {
    let work = || {
        // SAFETY: as the caller says; an empty list may have any address.
        let buffers = if count == 0 { &[] } else { unsafe { slice::from_raw_parts(buffers, count) } };
        let writable = |buffer: &Bytes| match buffer.len {
            0 => &mut [][..],
            // SAFETY: as the caller says.
            _ => unsafe { slice::from_raw_parts_mut(buffer.data, buffer.len) },
        };
        let mut buffers: Vec<&mut [u8]> = buffers.iter().map(writable).collect();
        self::object(object)?.read_exact_at(&mut buffers, offset).map(|()| Value::Null)
    };
    // SAFETY: as the caller says.
    unsafe { answer(watched, reply, work) }
}

/// # Safety
/// As [`call`].
unsafe extern "C" fn write(upload: u64, bytes: Bytes, watched: *mut i64, reply: *mut Bytes) -> i32 {
    // SAFETY: as the caller says.
    let work = || UPLOADS.with(upload, |open| open.write(unsafe { readable(bytes) })).map(|()| Value::Null);
    // SAFETY: as the caller says.
    unsafe { answer(watched, reply, work) }
}

/// # Safety
/// The bytes are readable for as long as the slice is used.
unsafe fn readable<'a>(bytes: Bytes) -> &'a [u8] {
    match bytes.len {
        0 => &[],
        // SAFETY: as the caller says.
        len => unsafe { slice::from_raw_parts(bytes.data, len) },
    }
}

/// # Safety
/// The reply comes from one of these functions, and is freed once.
unsafe extern "C" fn free(reply: Bytes) {
    if !reply.data.is_null() {
        // SAFETY: this is the box that `answer` gave away.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(reply.data, reply.len)) });
    }
}
