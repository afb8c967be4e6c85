//! Functions that are compiled for several kinds of processors, of which each call takes the best.

/// Whether this processor has all of these features.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
}

/// Defines a function that calls `$work` as compiled for the best features that this processor has.
macro_rules! dispatched {
    (
        $(#[$about:meta])*
        $seen:vis fn $name:ident $(<const $size:ident: usize>)? ($($argument:ident: $kind:ty),*) -> $made:ty = $work:expr
    ) => {
        $(#[$about])*
        $seen fn $name $(<const $size: usize>)? ($($argument: $kind),*) -> $made {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,bmi1,bmi2,popcnt")]
                fn avx512 $(<const $size: usize>)? ($($argument: $kind),*) -> $made {
                    $work($($argument),*)
                }
                #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
                fn avx2 $(<const $size: usize>)? ($($argument: $kind),*) -> $made {
                    $work($($argument),*)
                }
                if $crate::simd::has!("avx512f", "avx512bw", "avx512vl", "avx2", "bmi1", "bmi2", "popcnt") {
                    // SAFETY: this processor has the features that the function is compiled for.
                    return unsafe { avx512 $(::<$size>)? ($($argument),*) };
                }
                if $crate::simd::has!("avx2", "bmi1", "bmi2", "popcnt") {
                    // SAFETY: as above.
                    return unsafe { avx2 $(::<$size>)? ($($argument),*) };
                }
            }
            $work($($argument),*)
        }
    };
}

pub(crate) use dispatched;
#[cfg(target_arch = "x86_64")]
pub(crate) use has;
