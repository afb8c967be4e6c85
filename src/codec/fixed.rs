//! The fixed-width code: of blocks of elements, each first byte as its distance from a base, in as few bits as pay.
//!
//! A block is a width, a base, a plane of 64 bytes for each bit of the width, the escapes, and the other bytes of the elements.
//! Bit `t` of byte `j` of a plane belongs to element `64 t + j`, so that a plane is spread without moving bytes about. A
//! distance of which all bits are set is an escape: the byte itself is in the list of those, in the order of the planes' bits.
//! Of width 8 is a block whose first bytes are not coded. What is left behind the last whole block is stored as it is.
//!
//! All functions are inlined into callers that are compiled for one kind of processor. So loops are plain: what iterators call
//! may be compiled apart, for any processor.

#![allow(clippy::inline_always, reason = "each caller is compiled for other processors")]
#![forbid(unsafe_code)]

use super::words::{join, split};

/// Elements of a block.
const BLOCK: usize = 512;
/// Bytes of a bit of each.
const PLANE: usize = BLOCK / 8;
/// The width of first bytes that are not coded.
const UNCODED: u8 = 8;

/// Fills `chunk`, of elements of `SIZE` bytes, with what `frame` encodes; `None` if that is no frame of it.
#[inline(always)]
pub(super) fn decode<const SIZE: usize>(mut frame: &[u8], chunk: &mut [u8]) -> Option<()> {
    let (blocks, tail) = chunk.split_at_mut(chunk.len() - chunk.len() % (BLOCK * SIZE));
    for block in blocks.chunks_exact_mut(BLOCK * SIZE) {
        frame = decode_block::<SIZE>(frame, block)?;
    }
    (frame.len() == tail.len()).then(|| tail.copy_from_slice(frame))
}

/// Fills `block`, and returns what follows its code.
#[inline(always)]
fn decode_block<'f, const SIZE: usize>(frame: &'f [u8], block: &mut [u8]) -> Option<&'f [u8]> {
    let (&[width, base], rest) = frame.split_first_chunk::<2>()?;
    let mut high = [base; BLOCK];
    let rest = match width {
        0 => rest,
        1 => spread::<1>(rest, &mut high)?,
        2 => spread::<2>(rest, &mut high)?,
        3 => spread::<3>(rest, &mut high)?,
        4 => spread::<4>(rest, &mut high)?,
        5 => spread::<5>(rest, &mut high)?,
        6 => spread::<6>(rest, &mut high)?,
        7 => spread::<7>(rest, &mut high)?,
        UNCODED => {
            let (bytes, rest) = rest.split_first_chunk::<BLOCK>()?;
            high = *bytes;
            rest
        }
        _ => return None,
    };
    let (low, rest) = rest.split_at_checked(BLOCK * (SIZE - 1))?;
    join::<SIZE>(&high, low, block);
    Some(rest)
}

/// Adds to each of `high` the distance in the planes that `frame` begins with, or puts an escape there.
#[inline(always)]
fn spread<'f, const WIDTH: usize>(frame: &'f [u8], high: &mut [u8; BLOCK]) -> Option<&'f [u8]> {
    let (planes, rest) = frame.split_at_checked(WIDTH * PLANE)?;
    let planes: &[[u8; PLANE]; WIDTH] = planes.as_chunks().0.try_into().ok()?;
    for (bit, row) in high.as_chunks_mut::<PLANE>().0.iter_mut().enumerate() {
        for (place, high) in row.iter_mut().enumerate() {
            let mut distance = 0;
            for (number, plane) in planes.iter().enumerate() {
                distance |= (plane[place] >> bit & 1) << number;
            }
            *high = high.wrapping_add(distance);
        }
    }
    let escaped = escaped(planes);
    let mut count = 0;
    for mask in escaped {
        count += mask.count_ones() as usize;
    }
    let (escapes, rest) = rest.split_at_checked(count)?;
    let mut next = 0;
    for (number, mut mask) in escaped.into_iter().enumerate() {
        while let Some(element) = take_element(number, &mut mask) {
            high[element] = escapes[next];
            next += 1;
        }
    }
    Some(rest)
}

/// Which elements have all bits set in `planes`: each plane's bits, eight bytes at a time.
#[inline(always)]
fn escaped<const WIDTH: usize>(planes: &[[u8; PLANE]; WIDTH]) -> [u64; PLANE / 8] {
    let mut all = [u8::MAX; PLANE];
    for plane in planes {
        for (all, bits) in all.iter_mut().zip(plane) {
            *all &= bits;
        }
    }
    let mut masks = [0; PLANE / 8];
    for (mask, bytes) in masks.iter_mut().zip(all.as_chunks::<8>().0) {
        *mask = u64::from_le_bytes(*bytes);
    }
    masks
}

/// The element of the lowest bit of `mask`, which is number `number` of those of [`escaped`]; the bit is cleared.
#[inline(always)]
fn take_element(number: usize, mask: &mut u64) -> Option<usize> {
    if *mask == 0 {
        return None;
    }
    let place = mask.trailing_zeros() as usize;
    *mask &= *mask - 1;
    Some(place % 8 * PLANE + number * 8 + place / 8)
}

/// The frame of `chunk`, of elements of `SIZE` bytes.
#[inline(always)]
pub(super) fn encode<const SIZE: usize>(chunk: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(chunk.len() + chunk.len() / (BLOCK * SIZE) * 2);
    let mut blocks = chunk.chunks_exact(BLOCK * SIZE);
    for block in &mut blocks {
        encode_block::<SIZE>(block, &mut frame);
    }
    frame.extend_from_slice(blocks.remainder());
    frame
}

#[inline(always)]
fn encode_block<const SIZE: usize>(block: &[u8], frame: &mut Vec<u8>) {
    let (mut high, mut low) = ([0; BLOCK], [0; BLOCK * 3]);
    let low = &mut low[..BLOCK * (SIZE - 1)];
    split::<SIZE>(block, &mut high, low);
    let (width, base) = choose::<SIZE>(&high);
    frame.extend([width, base]);
    match width {
        0 => {}
        1 => gather::<1>(&high, base, frame),
        2 => gather::<2>(&high, base, frame),
        3 => gather::<3>(&high, base, frame),
        4 => gather::<4>(&high, base, frame),
        5 => gather::<5>(&high, base, frame),
        6 => gather::<6>(&high, base, frame),
        7 => gather::<7>(&high, base, frame),
        _ => frame.extend_from_slice(&high),
    }
    frame.extend_from_slice(low);
}

/// Appends the planes and escapes of `high`.
#[inline(always)]
fn gather<const WIDTH: usize>(high: &[u8; BLOCK], base: u8, frame: &mut Vec<u8>) {
    let escape = u8::MAX >> (8 - WIDTH);
    let mut planes = [[0; PLANE]; WIDTH];
    for (bit, row) in high.as_chunks::<PLANE>().0.iter().enumerate() {
        for (place, high) in row.iter().enumerate() {
            let distance = high.wrapping_sub(base).min(escape);
            for (number, plane) in planes.iter_mut().enumerate() {
                plane[place] |= (distance >> number & 1) << bit;
            }
        }
    }
    frame.extend_from_slice(planes.as_flattened());
    for (number, mut mask) in escaped(&planes).into_iter().enumerate() {
        while let Some(element) = take_element(number, &mut mask) {
            frame.push(high[element]);
        }
    }
}

/// The width and base that take the fewest bytes for `high`.
#[inline(always)]
fn choose<const SIZE: usize>(high: &[u8; BLOCK]) -> (u8, u8) {
    if SIZE > 1 && *high == [high[0]; BLOCK] {
        return (0, high[0]);
    }
    let below = below(high);
    let (mut least, mut chosen) = (BLOCK, UNCODED);
    // Of elements of one byte, one bit would make chunks shorter than any may be.
    let narrowest = if SIZE == 1 { 2 } else { 1 };
    for width in narrowest..UNCODED {
        let mut most = 0;
        for count in covered(&below, width) {
            most = most.max(count);
        }
        let bytes = usize::from(width) * PLANE + BLOCK - usize::from(most);
        if bytes < least {
            (least, chosen) = (bytes, width);
        }
    }
    if chosen == UNCODED {
        return (UNCODED, 0);
    }
    let most = (usize::from(chosen) * PLANE + BLOCK) - least;
    let base = covered(&below, chosen).iter().position(|&count| usize::from(count) == most);
    (chosen, base.and_then(|base| u8::try_from(base).ok()).unwrap_or(0))
}

/// How many of `high` are less than each number up to 256.
#[inline(always)]
fn below(high: &[u8; BLOCK]) -> [u16; 257] {
    // Several, as a count waits for the one before in the same place.
    let mut counts = [[0_u16; 256]; 4];
    for four in high.as_chunks::<4>().0 {
        for (counts, &byte) in counts.iter_mut().zip(four) {
            counts[usize::from(byte)] += 1;
        }
    }
    let [one, two, three, four] = counts;
    let (mut below, mut sum) = ([0; 257], 0);
    for byte in 0..256 {
        below[byte] = sum;
        sum += one[byte] + two[byte] + three[byte] + four[byte];
    }
    below[256] = sum;
    below
}

/// How many elements have one of the bytes that fit in `width` bits beside an escape, from each base.
#[inline(always)]
fn covered(below: &[u16; 257], width: u8) -> [u16; 256] {
    let values = (1 << width) - 1;
    let mut covered = [0; 256];
    for ((covered, start), end) in covered.iter_mut().zip(below).zip(&below[values..]) {
        *covered = end - start;
    }
    covered
}
