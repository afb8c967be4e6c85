//! Threads that send parts, and the ways of buffers to them and back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use super::Parts;
use crate::error::{Error, ErrorKind, Result};

/// A part on its way: number, offset, bytes.
type Full = (usize, u64, Vec<u8>);

#[derive(Debug)]
pub(super) struct Ring {
    full: SyncSender<Full>,
    idle: Receiver<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
    outcome: Arc<Outcome>,
}

/// What is to be told of the parts that were sent, or the first error.
#[derive(Debug)]
struct Outcome(Mutex<Result<BTreeMap<usize, String>>>);

impl Outcome {
    fn lock(&self) -> MutexGuard<'_, Result<BTreeMap<usize, String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<()> {
        self.lock().as_ref().map(drop).map_err(Clone::clone)
    }

    fn note(&self, number: usize, sent: Result<String>) {
        let mut outcome = self.lock();
        match (&mut *outcome, sent) {
            (Ok(all), Ok(told)) => drop(all.insert(number, told)),
            (Ok(_), Err(error)) => *outcome = Err(error),
            (Err(_), _) => {}
        }
    }
}

impl Ring {
    /// # Errors
    /// [`ErrorKind::Io`]: the system has no thread left.
    pub(super) fn start(store: &Arc<dyn Parts>, senders: u64) -> Result<Self> {
        let (full, to_send) = mpsc::sync_channel::<Full>(0);
        let (sent, idle) = mpsc::channel();
        let (to_send, outcome) =
            (Arc::new(Mutex::new(to_send)), Arc::new(Outcome(Mutex::new(Ok(BTreeMap::new())))));
        let start = |number| {
            let (store, to_send, sent, outcome) =
                (Arc::clone(store), Arc::clone(&to_send), sent.clone(), Arc::clone(&outcome));
            let work = move || {
                let next = || to_send.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok((number, offset, mut bytes)) = next() {
                    if outcome.check().is_ok() {
                        outcome.note(number, store.send(number, offset, &bytes));
                    }
                    bytes.clear();
                    let _ = sent.send(bytes); // unless nobody fills it any more
                }
            };
            thread::Builder::new().name(format!("flashpack-upload-{number}")).spawn(work)
        };
        let mut threads = Vec::new();
        for number in 0..senders {
            match start(number) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(Error::io("cannot start a thread", &error)),
                Err(_) => break,
            }
        }
        Ok(Self { full, idle, threads, outcome })
    }

    /// An empty buffer, if there is one, that was sent before.
    pub(super) fn idle(&self) -> Vec<u8> {
        self.idle.try_recv().unwrap_or_default()
    }

    /// Waits for a thread to take a part.
    ///
    /// # Errors
    /// That of a part that could not be sent.
    pub(super) fn pass(&self, number: usize, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let passed = self.full.send((number, offset, bytes));
        self.outcome.check()?;
        passed.map_err(|_| panicked())
    }

    /// Waits for all parts, and says in their order what is to be told of them.
    ///
    /// # Errors
    /// As [`Ring::pass`].
    pub(super) fn finish(self) -> Result<Vec<String>> {
        drop(self.full);
        let panics = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        let sent = self.outcome.lock().clone()?;
        if panics > 0 { Err(panicked()) } else { Ok(sent.into_values().collect()) }
    }

    /// Waits for the parts that are being sent.
    pub(super) fn give_up(self) {
        *self.outcome.lock() = Err(Error::new(ErrorKind::Cancelled, "given up"));
        drop(self.finish());
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a thread that sends parts panicked")
}
