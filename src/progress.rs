//! Progress and cancellation of a long operation, shared with whoever watches it.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Three words that an operation and its watcher share: bytes done, bytes in all, and a request to cancel.
///
/// The words may live in the watcher's memory (a torch tensor, a ctypes array), so relaxed atomics carry them.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a>(Option<&'a [AtomicI64; 3]>);

impl<'a> Progress<'a> {
    /// Nobody watches.
    pub const SILENT: Self = Self(None);

    /// `words` are: bytes done, bytes in all (both written here), nonzero to cancel (written by the watcher).
    #[must_use]
    pub const fn new(words: &'a [AtomicI64; 3]) -> Self {
        Self(Some(words))
    }

    /// Borrows the watcher's three words; null means nobody watches.
    ///
    /// # Safety
    /// A non-null `words` must point to three `i64` that stay valid for `'a` and are accessed only atomically or by
    /// code that tolerates torn reads of a counter, as every reader of an aligned 64-bit word on our targets may.
    #[must_use]
    pub const unsafe fn from_ptr(words: *mut i64) -> Self {
        if words.is_null() {
            return Self::SILENT;
        }
        // SAFETY: the caller vouches for three valid words; AtomicI64 has the size and, on the 64-bit targets this
        // crate is built for, the alignment of i64.
        Self(Some(unsafe { &*words.cast::<[AtomicI64; 3]>() }))
    }

    /// Announces `total` bytes of work.
    pub fn start(self, total: u64) {
        if let Some([done, all, _]) = self.0 {
            done.store(0, Ordering::Relaxed);
            all.store(total.cast_signed(), Ordering::Relaxed);
        }
    }

    /// Reports `bytes` more done.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] once the watcher asked for it.
    pub fn advance(self, bytes: u64) -> Result<()> {
        let Some([done, _, cancel]) = self.0 else {
            return Ok(());
        };
        done.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
        if cancel.load(Ordering::Relaxed) == 0 {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        }
    }
}
