//! What the two libraries tell each other: a table of C functions, and the JSON that they take and give.

use serde::{Deserialize, Serialize};

use super::Opening;

/// The stores as C functions. They return 0, or 1 with an [`Error`](crate::Error) as the reply. `watched` is what
/// [`Progress`](crate::progress::Progress) says who watches the calling thread by, or null.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    /// That of the crate, behind it zeros: only libraries of the same version know what the rest means.
    pub version: [u8; 32],
    /// Carries out a [`Request`].
    pub call: unsafe extern "C" fn(request: Bytes, watched: *mut i64, reply: *mut Bytes) -> i32,
    /// Fills buffers from an offset of an object.
    pub read: unsafe extern "C" fn(
        object: u64,
        buffers: *const Bytes,
        count: usize,
        offset: u64,
        watched: *mut i64,
        reply: *mut Bytes,
    ) -> i32,
    /// Appends bytes to an upload.
    pub write: unsafe extern "C" fn(upload: u64, bytes: Bytes, watched: *mut i64, reply: *mut Bytes) -> i32,
    /// Frees a reply.
    pub free: unsafe extern "C" fn(reply: Bytes),
}

/// Bytes at an address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub data: *mut u8,
    pub len: usize,
}

/// What is asked of the stores, but for bytes. Objects and uploads go by numbers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Gives an [`Opened`].
    Open { url: String, opening: Opening },
    /// Gives a list of [`Entry`](super::Entry).
    List { url: String, deep: bool },
    /// Gives a URL.
    Pinned { url: String },
    /// Gives an [`Opened`] upload.
    Create { url: String, expected_bytes: u64 },
    /// Removes an object.
    Remove { url: String },
    /// Sends what an upload has, which is all.
    Seal { upload: u64 },
    /// Makes an upload an object.
    Finish { upload: u64 },
    /// Gives an upload up.
    Abandon { upload: u64 },
    /// Lets go of an object.
    Close { object: u64 },
    /// Forgets copies of bytes.
    Distrust { object: u64, offset: u64, bytes: u64 },
    /// Gives a [`Traffic`](super::Traffic).
    Traffic { object: u64 },
    /// Gives a text, or null.
    Note { object: u64 },
}

/// What was opened or begun.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub number: u64,
    pub bytes: u64,
    /// As [`Object::pinned`](super::Object::pinned).
    pub pinned: Option<String>,
}

/// The version of this crate, as a table has it.
pub(crate) const fn version() -> [u8; 32] {
    let (text, mut version) = (env!("CARGO_PKG_VERSION").as_bytes(), [0; 32]);
    let mut at = 0;
    while at < text.len() {
        version[at] = text[at];
        at += 1;
    }
    version
}
