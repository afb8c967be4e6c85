//! The locks and threads of loads: the standard library's or, built with `--cfg shuttle`, those of a scheduler that
//! tries their interleavings (`make models`).

#[cfg(shuttle)]
use shuttle as library;
#[cfg(not(shuttle))]
use std as library;

pub(crate) use library::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Scope, ScopedJoinHandle},
};

use std::sync::{LockResult, PoisonError};

#[cfg(not(shuttle))]
pub(crate) use std::thread::scope;

/// What a lock guards, also after a thread has panicked while it held it: the bindings make an error of the panic, which the
/// calls that follow need not repeat.
pub(crate) trait Unpoisoned<T> {
    /// The guard, or the value itself.
    fn unpoisoned(self) -> T;
}

impl<T> Unpoisoned<T> for LockResult<T> {
    fn unpoisoned(self) -> T {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` on a thread of its own: the last thread of a scope to end wakes the one that opened it, in shuttle 0.9
/// even if that waits for a lock just then.
#[cfg(shuttle)]
pub(crate) fn scope<'env, T: Send + 'env>(
    work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T + Send + 'env,
) -> T {
    library::thread::scope(|all| all.spawn(|| work(all)).join().expect("shuttle ends with the first panic"))
}

/// Starts a thread of `scope`, called `name` where threads have names; none if the system has no more.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    #[cfg(shuttle)]
    let started = Some((scope.spawn(work), name)).map(|(thread, _)| thread);
    #[cfg(not(shuttle))]
    let started = library::thread::Builder::new().name(name).spawn_scoped(scope, work).ok();
    started
}
