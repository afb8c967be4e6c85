//! Buffers that are filled one after the other.

use std::mem;

/// What is still to be filled of some buffers.
pub(in crate::remote::stores) struct Scatter<'a, 'b> {
    buffers: &'a mut [&'b mut [u8]],
    /// Bytes of the first one that are filled.
    filled: usize,
    left: usize,
}

impl<'a, 'b> Scatter<'a, 'b> {
    pub(in crate::remote::stores) fn new(buffers: &'a mut [&'b mut [u8]]) -> Self {
        let left = buffers.iter().map(|buffer| buffer.len()).sum();
        Self { buffers, filled: 0, left }
    }

    /// Bytes that are still to be filled.
    pub(in crate::remote::stores) fn left(&self) -> usize {
        self.left
    }

    /// Where the next bytes belong, at most so many; empty if all are filled.
    pub(super) fn next(&mut self, most: usize) -> &mut [u8] {
        while self.buffers.first().is_some_and(|first| self.filled == first.len()) {
            self.buffers = &mut mem::take(&mut self.buffers)[1..];
            self.filled = 0;
        }
        let Some(first) = self.buffers.first_mut() else { return &mut [] };
        let most = most.min(self.left).min(first.len() - self.filled);
        &mut first[self.filled..][..most]
    }

    /// The next `bytes` are filled: no more than [`Scatter::next`] gave.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
        self.left -= bytes;
    }

    /// Fills the next bytes with these.
    pub(in crate::remote::stores) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.left > 0 {
            let place = self.next(bytes.len());
            let (now, later) = bytes.split_at(place.len());
            place.copy_from_slice(now);
            self.advance(now.len());
            bytes = later;
        }
    }

    /// Fills the last bytes with these, and leaves those before to be filled.
    pub(in crate::remote::stores) fn put_last(&mut self, bytes: &[u8]) {
        let begin = self.left - bytes.len();
        let mut at = 0;
        for (index, buffer) in self.buffers.iter_mut().enumerate() {
            let buffer = &mut buffer[if index == 0 { self.filled } else { 0 }..];
            let skipped = begin.saturating_sub(at).min(buffer.len());
            let from = (at + skipped).saturating_sub(begin).min(bytes.len());
            let count = (buffer.len() - skipped).min(bytes.len() - from);
            buffer[skipped..][..count].copy_from_slice(&bytes[from..][..count]);
            at += buffer.len();
        }
        self.left = begin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_filled_from_both_ends() {
        for (head, tail) in [(0, 0), (1, 9), (3, 3), (4, 2), (10, 0), (0, 10), (2, 5)] {
            let bytes: Vec<u8> = (1..=10).collect();
            let mut buffers = [vec![0; 3], vec![], vec![0; 2], vec![0; 5]];
            let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            let mut scatter = Scatter::new(&mut slices);
            scatter.put(&bytes[..head]);
            scatter.put_last(&bytes[10 - tail..]);
            assert_eq!(scatter.left(), 10 - head - tail);
            scatter.put(&bytes[head..10 - tail]);
            assert!(scatter.left() == 0 && scatter.next(1).is_empty());
            assert_eq!(buffers.concat(), bytes, "{head} {tail}");
        }
    }
}
