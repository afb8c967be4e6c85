//! How many threads read: as many as latency times bandwidth asks for, which only trying tells.

use std::{ops::Range, time::Instant};

use crate::plan::Readers;

/// Twice as many readers stay only if they read so much faster than half of them did.
const WORTHWHILE: f64 = 1.2;

/// Doubles the readers of a load for as long as each doubling makes it faster.
///
/// A window is as many reads as there are readers: each read of a storage that is not busy yet takes as long as before,
/// so twice as many readers read almost twice as fast, and of one that is busy no faster.
#[derive(Debug)]
pub(super) struct Growth {
    readers: usize,
    /// No more readers than this; as many as there are, once it is known that more are of no use.
    most: usize,
    began: Instant,
    reads: usize,
    bytes: u64,
    /// Bytes per second of the window before.
    rate: f64,
}

impl Growth {
    pub(super) fn new(Readers { first, most }: Readers) -> Self {
        Self { readers: first, most, began: Instant::now(), reads: 0, bytes: 0, rate: 0.0 }
    }

    /// Counts a read of `bytes` that has ended `now`; the numbers of the readers to start then.
    pub(super) fn completed(&mut self, bytes: u64, now: Instant) -> Option<Range<usize>> {
        self.reads += 1;
        self.bytes += bytes;
        if self.readers >= self.most || self.reads < self.readers {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let rate = self.bytes as f64 / (now - self.began).as_secs_f64();
        let before = self.readers;
        if rate > WORTHWHILE * self.rate {
            self.readers = (2 * before).min(self.most);
        } else {
            self.most = before;
        }
        (self.rate, self.began, self.reads, self.bytes) = (rate, now, 0, 0);
        Some(before..self.readers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The readers at the end of a load of `reads` reads of a storage that takes `latency` for each, and no more than
    /// `at_once` at a time.
    fn grown(first: usize, most: usize, at_once: usize, reads: usize) -> usize {
        let latency = Duration::from_millis(20);
        let mut growth = Growth::new(Readers { first, most });
        let (mut now, mut left) = (growth.began, reads);
        while left > 0 {
            let round = growth.readers.min(left);
            let rounds = u32::try_from(round.div_ceil(at_once)).unwrap();
            now += latency * rounds;
            for _ in 0..round {
                growth.completed(1 << 20, now);
            }
            left -= round;
        }
        growth.readers
    }

    #[test]
    fn readers_grow_while_that_makes_reads_faster() {
        assert_eq!(grown(16, 128, 1000, 1000), 128, "a storage that is never busy");
        assert_eq!(grown(16, 128, 64, 1000), 128, "64 at once: the last doubling was tried, and stays");
        assert_eq!(grown(16, 128, 8, 1000), 32, "busy from the beginning: one doubling is tried");
        assert_eq!(grown(16, 100, 1000, 1000), 100);
        assert_eq!(grown(16, 128, 1000, 15), 16, "too few reads to tell");
        assert_eq!(grown(4, 4, 1000, 1000), 4);
    }

    #[test]
    fn the_numbers_of_new_readers_follow_those_there_are() {
        let mut growth = Growth::new(Readers { first: 2, most: 7 });
        let mut numbers = Vec::new();
        for _ in 0..20 {
            let later = growth.began + Duration::from_millis(1);
            numbers.extend(growth.completed(1, later));
        }
        assert_eq!(numbers, [2..4, 4..7]);
    }
}
