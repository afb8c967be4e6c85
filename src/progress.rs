//! Progress and cancellation of a long operation, shared with whoever watches it.

use std::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use crate::error::{Error, ErrorKind, Result};

/// How long to wait for something before looking again whether the work is cancelled.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Three words that an operation and its watcher share: bytes done, bytes in all, and a request to cancel.
///
/// The words may live in the watcher's memory (a torch tensor, a ctypes array), so relaxed atomics carry them.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a>(Option<&'a [AtomicI64; 3]>);

thread_local! {
    /// The words of whoever watches what this thread does; they are valid for as long as they are here.
    static WATCHED: Cell<Option<NonNull<[AtomicI64; 3]>>> = const { Cell::new(None) };
}

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

    /// Does `work`. What waits for a server or for staging memory in it, on this thread or on those that read for it, ends
    /// with [`ErrorKind::Cancelled`] soon after the watcher asks for that, and not with the server's next byte.
    pub fn watch<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<NonNull<[AtomicI64; 3]>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                WATCHED.set(self.0);
            }
        }
        let _restore = Restore(WATCHED.replace(self.0.map(NonNull::from)));
        work()
    }

    /// Does `work` with that of the call of [`Progress::watch`] that this thread is in; a silent one outside of any.
    pub(crate) fn here<T>(work: impl FnOnce(Progress<'_>) -> T) -> T {
        // SAFETY: `watch` borrows the words, and does not return before `work` has.
        work(Progress(WATCHED.get().map(|words| unsafe { words.as_ref() })))
    }

    /// What [`Progress::from_ptr`] takes.
    #[cfg(any(not(feature = "remote"), test))]
    pub(crate) fn as_ptr(self) -> *mut i64 {
        self.0.map_or(std::ptr::null_mut(), |words| words.as_ptr().cast_mut().cast())
    }
}

/// Lets whoever waits for a server or for memory go on.
///
/// # Errors
/// [`ErrorKind::Cancelled`]: the watcher of what this thread does asked for that.
pub(crate) fn check() -> Result<()> {
    Progress::here(|watcher| watcher.advance(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_watched_while_it_does_the_work() {
        let (outer, inner) = ([const { AtomicI64::new(0) }; 3], [const { AtomicI64::new(0) }; 3]);
        outer[2].store(1, Ordering::Relaxed);
        let is_cancelled = || Progress::here(|watcher| watcher.advance(0)).is_err();
        assert!(!is_cancelled());
        Progress::new(&outer).watch(|| {
            assert!(is_cancelled());
            assert!(!Progress::new(&inner).watch(is_cancelled));
            assert!(!Progress::SILENT.watch(is_cancelled));
            assert!(is_cancelled());
            assert!(!std::thread::spawn(is_cancelled).join().unwrap());
        });
        assert!(!is_cancelled());
    }
}
