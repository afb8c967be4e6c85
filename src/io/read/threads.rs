//! Work shared out among threads, of which more start while that makes a load faster.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use super::growth::Growth;
use crate::{
    error::{Error, ErrorKind, Result},
    plan::Readers,
    progress::Progress,
    sync::{self, Mutex, MutexGuard, Scope, Unpoisoned as _},
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
        lock(&self.0).as_mut()?.next()
    }

    /// Leaves no work to anybody.
    pub fn stop(&self) {
        *lock(&self.0) = None;
    }

    /// Passes `outcome` on, after stopping the work if it is an error.
    ///
    /// # Errors
    /// That of `outcome`.
    pub fn stop_on_error<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|_| self.stop())
    }
}

/// What `make` makes of each of `items`, in their order, with `threads` threads.
///
/// # Errors
/// [`ErrorKind::Internal`] if one panicked.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    make: impl Fn(&T) -> R + Sync,
) -> Result<Vec<R>> {
    let (work, made) = (Work::new(items.iter().enumerate()), Mutex::new(Vec::with_capacity(items.len())));
    run_threads(threads.min(items.len()), || {
        while let Some((number, item)) = work.next() {
            let result = make(item);
            lock(&made).push((number, result));
        }
        Ok(())
    })?;
    let mut made = made.into_inner().unpoisoned();
    made.sort_unstable_by_key(|(number, _)| *number);
    Ok(made.into_iter().map(|(_, result)| result).collect())
}

/// Runs `worker` on this thread and on others, `threads` in all; of several errors it returns the one about the
/// earliest byte.
///
/// # Errors
/// That of a worker; [`ErrorKind::Internal`] if one panicked.
pub fn run_threads(threads: usize, worker: impl Fn() -> Result<()> + Sync) -> Result<()> {
    run_readers(Readers::fixed(threads), |_| worker())
}

/// [`run_threads`] with a number of threads that grows: each worker tells the bytes of every item that it has read.
///
/// # Errors
/// As [`run_threads`].
pub fn run_readers<W>(readers: Readers, worker: W) -> Result<()>
where
    W: Fn(&dyn Fn(u64)) -> Result<()> + Sync,
{
    let (growth, outcome) = (Mutex::new(Growth::new(readers)), Mutex::new(Ok(())));
    Progress::here(|progress| {
        let crew = Crew { worker, progress, growth, outcome };
        sync::scope(|scope| {
            (1..readers.first).for_each(|number| crew.enlist(scope, number));
            crew.work(scope);
        });
        crew.outcome.into_inner().unpoisoned()
    })
}

/// The threads of one load.
struct Crew<'a, W> {
    worker: W,
    /// Who watches the thread that loads, watches its others, too.
    progress: Progress<'a>,
    growth: Mutex<Growth>,
    /// The error about the earliest byte so far.
    outcome: Mutex<Result<()>>,
}

impl<W: Fn(&dyn Fn(u64)) -> Result<()> + Sync> Crew<'_, W> {
    /// Starts a thread. One that cannot be started only makes the load slower: the others work, too.
    fn enlist<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, number: usize) {
        sync::spawn(scope, format!("flashpack-read-{number}"), move || self.work(scope));
    }

    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let completed = |bytes| {
            let more = lock(&self.growth).completed(bytes, Instant::now());
            more.into_iter().flatten().for_each(|number| self.enlist(scope, number));
        };
        let panicked = |_| Err(Error::new(ErrorKind::Internal, "a reader thread panicked"));
        // What a worker leaves behind is dropped, and the load is an error.
        let mine = catch_unwind(AssertUnwindSafe(|| self.progress.watch(|| (self.worker)(&completed))));
        let mine = mine.unwrap_or_else(panicked);
        let mut outcome = lock(&self.outcome);
        *outcome = earlier(std::mem::replace(&mut *outcome, Ok(())), mine);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unpoisoned()
}

fn earlier(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(one.earlier(other)),
        (one, other) => one.and(other),
    }
}
