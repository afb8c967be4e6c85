//! First bytes by zstd, which finds no repetitions among them and so codes them by Huffman's; the others as they are.
//!
//! A frame has, for each block of elements, the length of zstd's frame as four bytes and that frame; then the other bytes of
//! all elements, one plane after another; then what is left behind the last whole element.

#![forbid(unsafe_code)]

use ::zstd::{bulk, zstd_safe::CParameter};

use super::words::{join, split};

/// Elements of a block: zstd's own have no more.
const BLOCK: usize = 128 << 10;

/// Fills `chunk`, of elements of `SIZE` bytes, with what `frame` encodes; `None` if that is no frame of it.
pub(super) fn decode<const SIZE: usize>(frame: &[u8], chunk: &mut [u8]) -> Option<()> {
    let elements = chunk.len() / SIZE;
    let (elements_bytes, tail) = chunk.split_at_mut(elements * SIZE);
    let behind = elements * (SIZE - 1) + tail.len();
    let (mut coded, rest) = frame.split_at_checked(frame.len().checked_sub(behind)?)?;
    let (low, rest) = rest.split_at(elements * (SIZE - 1));
    tail.copy_from_slice(rest);
    let mut zstd = bulk::Decompressor::new().ok()?;
    let mut high = vec![0; elements.min(BLOCK)];
    for (number, block) in elements_bytes.chunks_mut(BLOCK * SIZE).enumerate() {
        let high = &mut high[..block.len() / SIZE];
        let (length, rest) = coded.split_first_chunk::<4>()?;
        let (one, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        coded = rest;
        (zstd.decompress_to_buffer(one, high).ok()? == high.len()).then_some(())?;
        let from = number * BLOCK * (SIZE - 1);
        join::<SIZE>(high, &low[from..from + high.len() * (SIZE - 1)], block);
    }
    coded.is_empty().then_some(())
}

/// The frame of `chunk`, of elements of `SIZE` bytes.
pub(super) fn encode<const SIZE: usize>(chunk: &[u8]) -> Vec<u8> {
    let (elements, tail) = chunk.split_at(chunk.len() - chunk.len() % SIZE);
    let mut frame = Vec::with_capacity(chunk.len() + chunk.len() / 64);
    let mut low = vec![0; elements.len() / SIZE * (SIZE - 1)];
    let mut zstd = compressor().expect("the parameters are some of zstd's");
    let mut high = vec![0; BLOCK.min(elements.len() / SIZE)];
    for (number, block) in elements.chunks(BLOCK * SIZE).enumerate() {
        let (high, from) = (&mut high[..block.len() / SIZE], number * BLOCK * (SIZE - 1));
        split::<SIZE>(block, high, &mut low[from..from + block.len() / SIZE * (SIZE - 1)]);
        let one = zstd.compress(high).expect("zstd takes any bytes");
        frame.extend_from_slice(&u32::try_from(one.len()).expect("a block is small").to_le_bytes());
        frame.extend_from_slice(&one);
    }
    frame.extend_from_slice(&low);
    frame.extend_from_slice(tail);
    frame
}

/// One that hardly finds repetitions, as it remembers few of them, and long ones only: of exponents none are worth their bytes.
fn compressor() -> std::io::Result<bulk::Compressor<'static>> {
    let mut zstd = bulk::Compressor::new(1)?;
    zstd.set_parameter(CParameter::MinMatch(7))?;
    zstd.set_parameter(CParameter::HashLog(6))?;
    Ok(zstd)
}
