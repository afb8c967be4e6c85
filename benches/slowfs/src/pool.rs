//! Threads that wait for reads to be due.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

type Job = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

pub struct Pool(Sender<Job>);

impl Pool {
    /// Each of the threads has a buffer of its own, which stays as large as it was made.
    pub fn new(threads: usize) -> Self {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            thread::spawn(move || {
                let mut buffer = Vec::new();
                loop {
                    let job = receiver.lock().unwrap().recv();
                    match job {
                        Ok(job) => job(&mut buffer),
                        Err(_) => return,
                    }
                }
            });
        }
        Self(sender)
    }

    /// Has the next thread that is free do it.
    pub fn run(&self, job: impl FnOnce(&mut Vec<u8>) + Send + 'static) {
        self.0.send(Box::new(job)).expect("threads stay as long as the pool does");
    }
}
