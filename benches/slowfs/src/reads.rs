//! What a read gives, and when.

use crate::counts::Counts;
use crate::options::Options;
use crate::pace::Pace;
use fuser::ReplyData;
use nix::errno::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;
use std::{io, thread};

pub struct Reads {
    pub counts: Counts,
    pace: Pace,
    fail_at: Option<u64>,
}

/// A read that arrived.
pub struct Read {
    pub arrived: Instant,
    pub file: io::Result<Arc<File>>,
    pub offset: u64,
    pub size: usize,
    pub reply: ReplyData,
}

impl Reads {
    pub fn new(options: &Options) -> Self {
        Self { counts: Counts::default(), pace: Pace::new(options), fail_at: options.fail_at }
    }

    /// Reads into `buffer`, waits until the bytes are due, and replies.
    pub fn answer(&self, Read { arrived, file, offset, size, reply }: Read, buffer: &mut Vec<u8>) {
        buffer.resize(size.max(buffer.len()), 0);
        let result = file.and_then(|file| self.fill(&file, offset, &mut buffer[..size]));
        let bytes = *result.as_ref().unwrap_or(&0);
        let due = self.pace.due(arrived, bytes);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        self.counts.end(bytes);
        match result {
            Ok(_) => reply.data(&buffer[..bytes]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fill(&self, file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match file.read_at(&mut into[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let read = offset..offset + filled as u64;
        if self.fail_at.is_some_and(|at| read.contains(&at)) { Err(Errno::EIO.into()) } else { Ok(filled) }
    }
}
