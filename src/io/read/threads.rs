//! Work shared out among threads.

use std::sync::PoisonError;

use crate::{
    error::{Error, ErrorKind, Result},
    sync::{self, Mutex},
};

/// The work of several threads: each takes the next item until there are none, or one thread failed.
pub struct Work<I>(Mutex<Option<I>>);

impl<I: Iterator> Work<I> {
    /// Work of all `items`.
    pub const fn new(items: I) -> Self {
        Self(Mutex::new(Some(items)))
    }

    /// The next item.
    pub fn next(&self) -> Option<I::Item> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.next()
    }

    /// Leaves no work to anybody.
    pub fn stop(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Passes `outcome` on, after stopping the work if it is an error.
    ///
    /// # Errors
    /// That of `outcome`.
    pub fn stop_on_error<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|_| self.stop())
    }
}

/// Runs `worker` on this thread and on others, `threads` in all; of several errors it returns the one about the
/// earliest byte.
///
/// # Errors
/// That of a worker; [`ErrorKind::Internal`] if one panicked.
pub fn run_threads(threads: usize, worker: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let panicked = |_| Err(Error::new(ErrorKind::Internal, "a reader thread panicked"));
    sync::scope(|scope| {
        // A thread that cannot be started only makes the load slower: this one works, too.
        let start = |number| sync::spawn(scope, format!("flashpack-read-{number}"), &worker);
        let others: Vec<_> = (1..threads).map_while(start).collect();
        let mine = worker();
        others.into_iter().map(|other| other.join().unwrap_or_else(panicked)).fold(mine, earlier)
    })
}

fn earlier(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(one.earlier(other)),
        (one, other) => one.and(other),
    }
}
