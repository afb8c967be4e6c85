//! Writing behind: threads bring full buffers to the disk while the next ones are filled.

use std::{
    fs::File,
    io, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
};

use crate::{
    error::{Error, ErrorKind, Result},
    io::HostBuffer,
    os::{self, FileExt as _, errno, is_any_of},
    sync::Unpoisoned as _,
};

/// Bytes that one request brings to the disk: two huge pages, which a disk takes in a few long pieces.
const BUFFER_BYTES: usize = 4 << 20;
/// Threads that write, and so requests that a disk has at a time: two keep it busy, several disks together take more.
const WRITERS: usize = 4;
/// Buffers of one file at the most: one that is filled, and for each thread one that it writes and one that lies ready.
/// Requests that share a disk end about together, and it would idle while the next buffers are filled.
const BUFFERS: usize = 2 * WRITERS + 1;

/// The growing end of a file. Its errors are for whoever knows the file's name to add it.
#[derive(Debug)]
pub(super) struct WriteBehind {
    target: Arc<Target>,
    /// What comes next in the file, of which the first `filled` bytes are there.
    buffer: HostBuffer,
    filled: usize,
    /// Where in the file the buffer begins.
    offset: u64,
    /// Buffers that were made so far.
    made: usize,
    /// A write failed: the file has a gap.
    broken: bool,
    /// From the first full buffer on, unless the system has no threads.
    ring: Option<Ring>,
}

impl WriteBehind {
    /// Writes to `file` from its start; past the page cache if `direct`, once there is a full buffer, and unless the
    /// file system refuses.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`].
    pub(super) fn new(file: File, direct: bool) -> Result<Self> {
        let direct = direct.then(|| os::open_to_write_direct(&file)).flatten();
        let (refused, given_up) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self {
            target: Arc::new(Target { file, direct, refused, given_up }),
            buffer: HostBuffer::new(BUFFER_BYTES)?,
            filled: 0,
            offset: 0,
            made: 1,
            broken: false,
            ring: None,
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], perhaps of bytes that were appended before; [`ErrorKind::Memory`].
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.append(bytes).inspect_err(|_| self.broken = true)
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filled == BUFFER_BYTES {
                self.pass_on()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.filled));
            self.buffer.as_mut_slice()[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Brings all bytes to the file, which is then like any other open one.
    ///
    /// # Errors
    /// As [`WriteBehind::write`]; [`ErrorKind::Internal`] after an error of that.
    pub(super) fn finish(&mut self) -> Result<()> {
        if self.broken {
            return Err(Error::new(ErrorKind::Internal, "bytes of a failed write are missing"));
        }
        if let Some(ring) = self.ring.take() {
            ring.finish().inspect_err(|_| self.broken = true)?;
        }
        let rest = &self.buffer.as_slice()[..mem::take(&mut self.filled)];
        self.target.write(rest, self.offset)?;
        self.target.set_len(self.offset + rest.len() as u64)
    }

    /// Hands the full buffer to a thread and takes another.
    fn pass_on(&mut self) -> Result<()> {
        if self.offset == 0 {
            self.ring = Ring::start(&self.target);
        }
        let offset = self.offset;
        self.filled = 0;
        self.offset += BUFFER_BYTES as u64;
        let Some(ring) = &self.ring else {
            return self.target.write(self.buffer.as_slice(), offset);
        };
        let next = match ring.idle.try_recv() {
            Ok(outcome) => outcome?,
            Err(TryRecvError::Empty) if self.made < BUFFERS => {
                self.made += 1;
                HostBuffer::new(BUFFER_BYTES)?
            }
            Err(_) => ring.next_idle()?,
        };
        ring.pass(mem::replace(&mut self.buffer, next), offset);
        Ok(())
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        // Of a file that is given up no other buffer is written, and nobody asks what went wrong.
        self.target.given_up.store(true, Ordering::Relaxed);
        if let Some(ring) = self.ring.take() {
            let _ = ring.finish();
        }
    }
}

/// The file, as all threads write to it.
#[derive(Debug)]
struct Target {
    file: File,
    /// The same file once more, past the page cache: bytes that only pass through would push out others, and flushing
    /// them takes longer. How a descriptor writes is for all threads the same, so each way has its own.
    direct: Option<File>,
    /// A direct write was refused.
    refused: AtomicBool,
    /// Nobody wants what is not written yet.
    given_up: AtomicBool,
}

impl Target {
    /// The descriptor for direct writes, as long as none was refused, for whole buffers.
    fn direct(&self, bytes: &[u8]) -> Option<&File> {
        let suits = bytes.len() == BUFFER_BYTES && !self.refused.load(Ordering::Relaxed);
        self.direct.as_ref().filter(|_| suits)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_either_way(bytes, offset).map_err(|error| Error::io("cannot write", &error))
    }

    /// Ends the file there: it may have been longer when its space was reserved.
    fn set_len(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).map_err(|error| Error::io("cannot set the length", &error))
    }

    fn write_either_way(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct(bytes) {
            match direct.write_all_at(bytes, offset) {
                // Refused only now, or after a part that no direct write can go on from.
                Err(error) if is_any_of(&error, &[errno::EINVAL]) => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                written => return written,
            }
        }
        self.file.write_all_at(bytes, offset)?;
        os::start_writeback(&self.file, offset, bytes.len() as u64);
        Ok(())
    }
}

/// Threads, and the ways of buffers to them and back.
#[derive(Debug)]
struct Ring {
    full: Sender<(HostBuffer, u64)>,
    idle: Receiver<Result<HostBuffer>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ring {
    /// None if the system has no thread left.
    fn start(target: &Arc<Target>) -> Option<Self> {
        let (full, to_write) = mpsc::channel::<(HostBuffer, u64)>();
        let (written, idle) = mpsc::channel();
        let to_write = Arc::new(Mutex::new(to_write));
        let start = |number| {
            let (target, to_write, written) = (Arc::clone(target), Arc::clone(&to_write), written.clone());
            let work = move || {
                let next = || to_write.lock().unpoisoned().recv();
                while let Ok((buffer, offset)) = next() {
                    let given_up = target.given_up.load(Ordering::Relaxed);
                    let done = if given_up { Ok(()) } else { target.write(buffer.as_slice(), offset) };
                    let outcome = done.map(|()| buffer);
                    let failed = outcome.is_err();
                    if written.send(outcome).is_err() || failed {
                        return;
                    }
                }
            };
            thread::Builder::new().name(format!("flashpack-write-{number}")).spawn(work).ok()
        };
        let threads: Vec<_> = (0..WRITERS).map_while(start).collect();
        (!threads.is_empty()).then_some(Self { full, idle, threads })
    }

    fn pass(&self, buffer: HostBuffer, offset: u64) {
        // Where no thread is left to take it, each has left its error among the idle buffers.
        let _ = self.full.send((buffer, offset));
    }

    fn next_idle(&self) -> Result<HostBuffer> {
        self.idle.recv().map_err(|_| panicked())?
    }

    /// Waits for all that was passed.
    fn finish(self) -> Result<()> {
        drop(self.full);
        let panics = self.threads.into_iter().filter_map(|thread| thread.join().err()).count();
        self.idle.iter().try_for_each(|outcome| outcome.map(drop))?;
        if panics > 0 { Err(panicked()) } else { Ok(()) }
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a writer thread panicked")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Any write to it is refused as a disk refuses a direct one.
    fn refusing() -> File {
        File::options().write(true).open("/proc/self/clear_refs").unwrap()
    }

    #[test]
    fn what_a_direct_write_is_refused_goes_through_the_page_cache() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = WriteBehind::new(file.try_clone().unwrap(), false).unwrap();
        Arc::get_mut(&mut bytes.target).unwrap().direct = Some(refusing());
        let piece: Vec<u8> = (0..BUFFER_BYTES).map(|place| (place >> 12).to_le_bytes()[0]).collect();
        for _ in 0..2 * BUFFERS {
            bytes.write(&piece).unwrap();
        }
        bytes.finish().unwrap();
        assert!(bytes.target.refused.load(Ordering::Relaxed));
        let mut back = vec![0; BUFFER_BYTES];
        for number in 0..2 * BUFFERS {
            file.read_exact_at(&mut back, (number * BUFFER_BYTES) as u64).unwrap();
            assert!(back == piece, "buffer {number}");
        }
        assert_eq!(file.metadata().unwrap().len(), (2 * BUFFERS * BUFFER_BYTES) as u64);
    }
}
