//! Blocks of an object: what is kept of it is kept, and proved by a digest, block by block.

use std::ops::Range;

use twox_hash::XxHash3_64;

/// Bytes of a block. A digest of them runs in a core's cache, and no read that ends within one costs much.
pub(super) const BLOCK_BYTES: u64 = 256 << 10;

/// The blocks of an object of so many bytes. The last one is shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    pub(super) bytes: u64,
}

impl Blocks {
    pub(super) const fn count(self) -> u64 {
        self.bytes.div_ceil(BLOCK_BYTES)
    }

    /// The bytes of the object that `block` is.
    pub(super) fn range(self, block: u64) -> Range<u64> {
        let start = block * BLOCK_BYTES;
        start..(start + BLOCK_BYTES).min(self.bytes)
    }

    /// The blocks that have bytes of `range`.
    pub(super) fn touched(self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(self.bytes);
        if range.start < end { range.start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) } else { 0..0 }
    }

    /// The blocks that lie in `range`.
    pub(super) fn within(self, range: &Range<u64>) -> Range<u64> {
        let first = range.start.div_ceil(BLOCK_BYTES);
        let end = if range.end >= self.bytes { self.count() } else { range.end / BLOCK_BYTES };
        first.min(end)..end
    }
}

/// What proves the bytes of a block; 0, which stands for a block that is not there, is of none.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes).max(1)
}

/// Lengths of what is in memory fit `usize`.
pub(super) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("lengths of memory fit usize")
}

/// Direct reads and writes begin and end at multiples of a disk's blocks, in memory and in the file.
pub(super) const DIRECT_BYTES: usize = 4096;

/// Memory that begins where direct reads and writes may.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    memory: Vec<u8>,
    range: Range<usize>,
}

impl Aligned {
    /// Room for so many bytes, with whatever was there before.
    pub(super) fn resize(&mut self, bytes: usize) {
        if self.memory.len() < bytes + DIRECT_BYTES {
            self.memory.resize(bytes + DIRECT_BYTES, 0);
        }
        let start = self.memory.as_ptr().align_offset(DIRECT_BYTES).min(DIRECT_BYTES);
        self.range = start..start + bytes;
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }
}

/// The memory of `range` of buffers that follow each other.
pub(super) fn part<'a>(buffers: &'a mut [&mut [u8]], range: &Range<u64>) -> Vec<&'a mut [u8]> {
    let mut begin = 0;
    let within = |buffer: &'a mut [u8]| {
        let bytes = buffer.len() as u64;
        let cut = |position: u64| to_usize(position.saturating_sub(begin).min(bytes));
        let (first, end) = (cut(range.start), cut(range.end));
        begin += bytes;
        (first < end).then(|| &mut buffer[first..end])
    };
    buffers.iter_mut().map(|buffer| &mut **buffer).filter_map(within).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_their_blocks() {
        let (bytes, one) = (3 * BLOCK_BYTES + 5, BLOCK_BYTES);
        let blocks = Blocks { bytes };
        assert_eq!((blocks.count(), blocks.range(1), blocks.range(3)), (4, one..2 * one, 3 * one..bytes));
        for (range, touched, within) in [
            (0..bytes, 0..4, 0..4),
            (0..bytes - 1, 0..4, 0..3),
            (3 * one..bytes, 3..4, 3..4),
            (one..2 * one, 1..2, 1..2),
            (one - 1..2 * one + 1, 0..3, 1..2),
            (5..9, 0..1, 1..1),
            (one + 5..one + 9, 1..2, 2..2),
            (5..5, 0..0, 1..1),
            (bytes..bytes + 9, 0..0, 4..4),
        ] {
            let is_empty = within.is_empty();
            assert_eq!(blocks.touched(&range), touched, "{range:?}");
            let found = blocks.within(&range);
            assert!(found == within || (is_empty && found.is_empty()), "{range:?}: {found:?}");
        }
        assert_eq!(Blocks { bytes: 0 }.count(), 0);
    }

    #[test]
    fn parts_of_buffers_are_those_of_their_bytes() {
        let bytes: Vec<u8> = (0..9).collect();
        for range in [0..9, 0..2, 1..2, 2..3, 1..8, 3..5, 8..9, 4..4] {
            let mut buffers = [vec![0, 1, 2], vec![], vec![3], vec![4, 5, 6, 7, 8]];
            let mut slices: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
            let found = part(&mut slices, &range);
            assert!(found.iter().all(|part| !part.is_empty()));
            assert_eq!(found.concat(), bytes[to_usize(range.start)..to_usize(range.end)], "{range:?}");
        }
    }
}
