//! The fixed-width code, compiled for several kinds of processors.

use super::fixed;
use crate::simd::dispatched;

dispatched! {
    /// [`fixed::decode`].
    pub(super) fn fixed<const SIZE: usize>(frame: &[u8], chunk: &mut [u8]) -> Option<()> = fixed::decode::<SIZE>
}

dispatched! {
    /// [`fixed::encode`].
    pub(super) fn fixed_encoded<const SIZE: usize>(chunk: &[u8]) -> Vec<u8> = fixed::encode::<SIZE>
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of few exponents, with some that escape.
    fn weights(bytes: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let word = |noise: u32| match noise % 31 {
            0 => noise,
            _ => (noise & 0x807f) | (0x3c00 + (noise & 0x300)),
        };
        (0..bytes / 2).flat_map(|_| [0, 8].map(|shift| word(next()).to_le_bytes()[shift / 8])).collect()
    }

    fn agree<const SIZE: usize>() {
        let chunk = weights(70_000);
        let frame = fixed_encoded::<SIZE>(&chunk);
        assert!(frame == super::fixed::encode::<SIZE>(&chunk), "whatever the processor");
        let (mut one, mut other) = (vec![1; chunk.len()], vec![2; chunk.len()]);
        fixed::<SIZE>(&frame, &mut one).unwrap();
        super::fixed::decode::<SIZE>(&frame, &mut other).unwrap();
        assert!(one == chunk && other == chunk);
    }

    #[test]
    fn every_processor_makes_the_same_frames_and_chunks() {
        agree::<1>();
        agree::<2>();
        agree::<4>();
    }
}
