//! Elements and their bytes: the first one, of the exponent, apart from the others.
//!
//! All functions are inlined into callers that are compiled for one kind of processor.

#![allow(clippy::inline_always, reason = "each caller is compiled for other processors")]
#![forbid(unsafe_code)]

/// The first bytes of the elements of `bytes`, of `SIZE` bytes each, to `high`; the others to `low`, one plane after another.
#[inline(always)]
pub(super) fn split<const SIZE: usize>(bytes: &[u8], high: &mut [u8], low: &mut [u8]) {
    match SIZE {
        1 => {
            for (high, byte) in high.iter_mut().zip(bytes) {
                *high = byte.rotate_left(1);
            }
        }
        2 => {
            for ((high, low), word) in high.iter_mut().zip(low).zip(bytes.as_chunks::<2>().0) {
                [*low, *high] = u16::from_le_bytes(*word).rotate_left(1).to_le_bytes();
            }
        }
        _ => {
            let count = high.len();
            let (one, rest) = low.split_at_mut(count);
            let (two, three) = rest.split_at_mut(count);
            let places = high.iter_mut().zip(one).zip(two).zip(three);
            for ((((high, one), two), three), word) in places.zip(bytes.as_chunks::<4>().0) {
                [*one, *two, *three, *high] = u32::from_le_bytes(*word).rotate_left(1).to_le_bytes();
            }
        }
    }
}

/// The elements whose first bytes are `high`, and the others `low`, to `bytes`.
#[inline(always)]
pub(super) fn join<const SIZE: usize>(high: &[u8], low: &[u8], bytes: &mut [u8]) {
    match SIZE {
        1 => {
            for (high, byte) in high.iter().zip(bytes) {
                *byte = high.rotate_right(1);
            }
        }
        2 => {
            for ((high, low), word) in high.iter().zip(low).zip(bytes.as_chunks_mut::<2>().0) {
                *word = (u16::from(*high) << 8 | u16::from(*low)).rotate_right(1).to_le_bytes();
            }
        }
        _ => {
            let (one, rest) = low.split_at(high.len());
            let (two, three) = rest.split_at(high.len());
            let places = high.iter().zip(one).zip(two).zip(three);
            for ((((high, one), two), three), word) in places.zip(bytes.as_chunks_mut::<4>().0) {
                let [one, two, three, high] = [*one, *two, *three, *high].map(u32::from);
                *word = (high << 24 | three << 16 | two << 8 | one).rotate_right(1).to_le_bytes();
            }
        }
    }
}
