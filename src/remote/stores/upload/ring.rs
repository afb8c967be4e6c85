//! Threads that send parts, and the ways of buffers to them and back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Parts;
use crate::{
    error::{Error, ErrorKind, Result},
    progress::{self, LOOK, Progress},
    sync::Unpoisoned as _,
};

/// For parts on their way when an upload is given up.
const GRACE: Duration = Duration::from_secs(5);

/// A part on its way: number, offset, bytes.
type Full = (usize, u64, Vec<u8>);

#[derive(Debug)]
pub(super) struct Ring {
    full: Sender<Full>,
    /// A buffer for each thread that has nothing to send.
    idle: Receiver<Vec<u8>>,
    threads: Vec<JoinHandle<()>>,
    outcome: Arc<Outcome>,
    /// What the threads are watched by: they are not those of whoever fills the buffers.
    words: Arc<[AtomicI64; 3]>,
}

/// What is to be told of the parts that were sent, or the first error.
#[derive(Debug)]
struct Outcome(Mutex<Result<BTreeMap<usize, String>>>);

impl Outcome {
    fn lock(&self) -> MutexGuard<'_, Result<BTreeMap<usize, String>>> {
        self.0.lock().unpoisoned()
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
        let (full, to_send) = mpsc::channel::<Full>();
        let (sent, idle) = mpsc::channel();
        let (to_send, outcome) =
            (Arc::new(Mutex::new(to_send)), Arc::new(Outcome(Mutex::new(Ok(BTreeMap::new())))));
        let words = Arc::new([const { AtomicI64::new(0) }; 3]);
        let start = |number| {
            let (store, to_send, sent, outcome, words) = (
                Arc::clone(store),
                Arc::clone(&to_send),
                sent.clone(),
                Arc::clone(&outcome),
                Arc::clone(&words),
            );
            let work = move || {
                let next = || to_send.lock().unpoisoned().recv();
                let mut idle = Vec::new();
                while sent.send(idle).is_ok()
                    && let Ok((number, offset, bytes)) = next()
                {
                    if outcome.check().is_ok() {
                        let send = || store.send(number, offset, &bytes);
                        outcome.note(number, Progress::new(&words).watch(send));
                    }
                    idle = bytes;
                    idle.clear();
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
        Ok(Self { full, idle, threads, outcome, words })
    }

    /// Waits for a thread that has nothing to send, and gives its buffer, which is empty.
    ///
    /// # Errors
    /// That of a part that could not be sent; [`ErrorKind::Cancelled`].
    pub(super) fn idle(&self) -> Result<Vec<u8>> {
        let next = self.wait()?.ok_or_else(panicked);
        self.outcome.check()?;
        next
    }

    /// The next buffer that a thread has sent; none when all threads have ended.
    fn wait(&self) -> Result<Option<Vec<u8>>> {
        loop {
            progress::check()?;
            match self.idle.recv_timeout(LOOK) {
                Ok(buffer) => return Ok(Some(buffer)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    fn wait_for_all(&self) -> Result<()> {
        while self.wait()?.is_some() {}
        Ok(())
    }

    /// Has a part sent by the thread whose buffer [`Ring::idle`] gave.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`]: all threads panicked.
    pub(super) fn pass(&self, number: usize, offset: u64, bytes: Vec<u8>) -> Result<()> {
        self.full.send((number, offset, bytes)).map_err(|_| panicked())
    }

    /// Waits for all parts, and says in their order what is to be told of them.
    ///
    /// # Errors
    /// As [`Ring::idle`].
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        self.full = mpsc::channel().0; // of the other one, threads see the end
        if let Err(error) = self.wait_for_all() {
            self.give_up();
            return Err(error);
        }
        let panics = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        let sent = self.outcome.lock().clone()?;
        if panics > 0 { Err(panicked()) } else { Ok(sent.into_values().collect()) }
    }

    /// Sends no further part, and lets those on their way arrive for a while: a store might keep one whose connection ends.
    pub(super) fn give_up(mut self) {
        *self.outcome.lock() = Err(Error::new(ErrorKind::Cancelled, "given up"));
        self.full = mpsc::channel().0;
        let end = Instant::now() + GRACE;
        while self.idle.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
        self.words[2].store(1, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a thread that sends parts panicked")
}
