//! The fixed-width code, compiled for several kinds of processors.

use super::fixed;

/// Whether this processor has all of these features.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
}

/// Defines `$name`, which calls `$work` as compiled for the best features that this processor has.
macro_rules! dispatched {
    ($name:ident, $work:path, ($($argument:ident: $kind:ty),*) -> $made:ty) => {
        pub(super) fn $name<const SIZE: usize>($($argument: $kind),*) -> $made {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,bmi1,bmi2,popcnt")]
                fn avx512<const SIZE: usize>($($argument: $kind),*) -> $made {
                    $work($($argument),*)
                }
                #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
                fn avx2<const SIZE: usize>($($argument: $kind),*) -> $made {
                    $work($($argument),*)
                }
                if has!("avx512f", "avx512bw", "avx512vl", "avx2", "bmi1", "bmi2", "popcnt") {
                    // SAFETY: this processor has the features that the function is compiled for.
                    return unsafe { avx512::<SIZE>($($argument),*) };
                }
                if has!("avx2", "bmi1", "bmi2", "popcnt") {
                    // SAFETY: as above.
                    return unsafe { avx2::<SIZE>($($argument),*) };
                }
            }
            $work($($argument),*)
        }
    };
}

dispatched!(fixed, fixed::decode::<SIZE>, (frame: &[u8], chunk: &mut [u8]) -> Option<()>);
dispatched!(fixed_encoded, fixed::encode::<SIZE>, (chunk: &[u8]) -> Vec<u8>);

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
