//! Values of two tensors, one by one.

#![allow(clippy::inline_always, reason = "the caller is compiled for several kinds of processors")]

use std::ops::AddAssign;

use half::f16;
use serde::Serialize;

use crate::{format::DType, simd::dispatched};

/// Elements that are decoded at a time; a `u16` counts them.
const BLOCK_ELEMS: usize = 1024;
const _: () = assert!(BLOCK_ELEMS <= u16::MAX as usize);

/// How the values of a tensor differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Values {
    /// How many were compared.
    pub elements: u64,
    /// How many have other bits or, if the dtypes differ, another value.
    pub different: u64,
    /// The largest difference that is a finite number; none for a dtype that is not decoded.
    pub largest: Option<f64>,
    /// How many differ by no finite number: one of the two is infinite, or NaN.
    pub unbounded: u64,
}

impl Values {
    pub(super) fn add(&mut self, other: Self) {
        self.elements += other.elements;
        self.different += other.different;
        self.unbounded += other.unbounded;
        self.largest = match (self.largest, other.largest) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Numbers of elements of a type.
macro_rules! decode {
    ($bytes:ident, $numbers:ident, $type:ty, |$value:ident| $number:expr) => {{
        let elements = $bytes.as_chunks::<{ size_of::<$type>() }>().0;
        for (number, element) in $numbers.iter_mut().zip(elements) {
            let $value = <$type>::from_le_bytes(*element);
            *number = $number;
        }
    }};
}

/// How a floating type of one byte spends its bits.
#[derive(Clone, Copy)]
enum Float8 {
    /// As IEEE 754: the largest exponent is for infinities and NaN.
    Ieee,
    /// No infinities; all other bits set are NaN.
    Finite,
    /// No infinities, no negative zero: its bits are NaN.
    Unsigned,
}

/// The number that `bits` stand for: a sign, `exponent_bits`, and the fraction.
fn float8(bits: u8, exponent_bits: u32, bias: i32, kind: Float8) -> f64 {
    let fraction_bits = 7 - exponent_bits;
    let (magnitude, fraction) = (bits & 0x7f, bits & ((1 << fraction_bits) - 1));
    let exponent = i32::from(magnitude >> fraction_bits);
    let is_largest = exponent == (1 << exponent_bits) - 1;
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    match kind {
        Float8::Ieee if is_largest => return if fraction == 0 { sign * f64::INFINITY } else { f64::NAN },
        Float8::Finite if magnitude == 0x7f => return f64::NAN,
        Float8::Unsigned if bits == 0x80 => return f64::NAN,
        _ => {}
    }
    let hidden = if exponent == 0 { 0 } else { 1 << fraction_bits };
    sign * f64::from(hidden + i32::from(fraction))
        * two_to(exponent.max(1) - bias - fraction_bits.cast_signed())
}

fn two_to(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}

/// Whether elements are numbers: not complex ones, and not several in a byte.
fn are_numbers(dtype: DType) -> bool {
    let others = [DType::Float4E2m1fnX2, DType::Complex32, DType::Complex64, DType::Complex128];
    !others.contains(&dtype)
}

/// Makes numbers of elements that are some.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a difference of integers beyond 2^53 is shown, not used")]
fn decode(dtype: DType, bytes: &[u8], numbers: &mut [f64; BLOCK_ELEMS]) {
    match dtype {
        DType::Float64 => decode!(bytes, numbers, f64, |value| value),
        DType::Float32 => decode!(bytes, numbers, f32, |value| f64::from(value)),
        DType::Float16 => decode!(bytes, numbers, f16, |value| f64::from(value)),
        // The conversion of `bf16` looks for NaNs, which keeps the compiler from making vectors.
        DType::Bfloat16 => {
            decode!(bytes, numbers, u16, |value| f64::from(f32::from_bits(u32::from(value) << 16)));
        }
        DType::Int64 => decode!(bytes, numbers, i64, |value| value as f64),
        DType::Int32 => decode!(bytes, numbers, i32, |value| f64::from(value)),
        DType::Int16 => decode!(bytes, numbers, i16, |value| f64::from(value)),
        DType::Int8 => decode!(bytes, numbers, i8, |value| f64::from(value)),
        DType::Uint64 => decode!(bytes, numbers, u64, |value| value as f64),
        DType::Uint32 => decode!(bytes, numbers, u32, |value| f64::from(value)),
        DType::Uint16 => decode!(bytes, numbers, u16, |value| f64::from(value)),
        DType::Float8E4m3fn => decode!(bytes, numbers, u8, |value| float8(value, 4, 7, Float8::Finite)),
        DType::Float8E4m3fnuz => decode!(bytes, numbers, u8, |value| float8(value, 4, 8, Float8::Unsigned)),
        DType::Float8E5m2 => decode!(bytes, numbers, u8, |value| float8(value, 5, 15, Float8::Ieee)),
        DType::Float8E5m2fnuz => decode!(bytes, numbers, u8, |value| float8(value, 5, 16, Float8::Unsigned)),
        DType::Float8E8m0fnu => {
            decode!(bytes, numbers, u8, |value| if value == 255 {
                f64::NAN
            } else {
                two_to(i32::from(value) - 127)
            });
        }
        DType::Uint8 | DType::Bool => decode!(bytes, numbers, u8, |value| f64::from(value)),
        DType::Float4E2m1fnX2 | DType::Complex32 | DType::Complex64 | DType::Complex128 => {
            unreachable!("are no numbers")
        }
    }
}

/// Makes exact numbers of integers, as those beyond 2^53 are none for an `f64`; whether they are integers.
fn decode_whole(dtype: DType, bytes: &[u8], numbers: &mut [i128]) -> bool {
    match dtype {
        DType::Int64 => decode!(bytes, numbers, i64, |value| value.into()),
        DType::Int32 => decode!(bytes, numbers, i32, |value| value.into()),
        DType::Int16 => decode!(bytes, numbers, i16, |value| value.into()),
        DType::Int8 => decode!(bytes, numbers, i8, |value| value.into()),
        DType::Uint64 => decode!(bytes, numbers, u64, |value| value.into()),
        DType::Uint32 => decode!(bytes, numbers, u32, |value| value.into()),
        DType::Uint16 => decode!(bytes, numbers, u16, |value| value.into()),
        DType::Uint8 | DType::Bool => decode!(bytes, numbers, u8, |value| value.into()),
        DType::Float64
        | DType::Float32
        | DType::Float16
        | DType::Bfloat16
        | DType::Float8E5m2
        | DType::Float8E4m3fn
        | DType::Float8E5m2fnuz
        | DType::Float8E4m3fnuz
        | DType::Float8E8m0fnu
        | DType::Float4E2m1fnX2
        | DType::Complex32
        | DType::Complex64
        | DType::Complex128 => return false,
    }
    true
}

/// Whether values of these dtypes can be compared: of one dtype bit by bit, of two as numbers.
pub(super) fn are_comparable(dtypes: [DType; 2]) -> bool {
    dtypes[0] == dtypes[1] || dtypes.iter().all(|&dtype| are_numbers(dtype))
}

/// Compares elements of dtypes that are comparable.
pub(super) fn compare(dtypes: [DType; 2], bytes: [&[u8]; 2]) -> Values {
    let sizes = dtypes.map(|dtype| usize::try_from(dtype.size()).expect("a few bytes"));
    let mut all = Values {
        elements: (bytes[0].len() / sizes[0]) as u64,
        largest: are_numbers(dtypes[0]).then_some(0.0),
        ..Values::default()
    };
    let is_one_type = dtypes[0] == dtypes[1];
    if is_one_type && bytes[0] == bytes[1] {
        return all;
    }
    let mut wholes = [vec![0; BLOCK_ELEMS], vec![0; BLOCK_ELEMS]];
    let [first, second] = [0, 1].map(|side| bytes[side].chunks(BLOCK_ELEMS * sizes[side]));
    for (one, other) in first.zip(second).filter(|(one, other)| !is_one_type || one != other) {
        if is_one_type {
            all.different += u64::from(count_different(sizes[0], one, other));
        }
        let [whole, other_whole] = wholes.each_mut().map(|numbers| &mut numbers[..one.len() / sizes[0]]);
        if decode_whole(dtypes[0], one, whole) && decode_whole(dtypes[1], other, other_whole) {
            all.add(whole_differences(whole, other_whole, is_one_type));
        } else if are_numbers(dtypes[0]) {
            all.add(differences(dtypes, one, other));
        }
    }
    all
}

dispatched! {
    /// How a block of numbers differs. Of one dtype the caller has counted them: other bits are, of which NaNs have many.
    fn differences(dtypes: [DType; 2], one: &[u8], other: &[u8]) -> Values = block_differences
}

#[inline(always)]
fn block_differences(dtypes: [DType; 2], one: &[u8], other: &[u8]) -> Values {
    let is_counted = dtypes[0] == dtypes[1];
    if is_counted && let Some(largest) = largest_of(dtypes[0], one, other) {
        return Values { largest: Some(largest), ..Values::default() };
    }
    let mut numbers = [[0.0; BLOCK_ELEMS]; 2];
    decode(dtypes[0], one, &mut numbers[0]);
    decode(dtypes[1], other, &mut numbers[1]);
    let (largest, different, unbounded) = finite(&numbers).unwrap_or_else(|| any(&numbers));
    let different = if is_counted { 0 } else { different };
    Values { elements: 0, different, largest: Some(largest), unbounded }
}

/// The largest difference of floating numbers of a type that most models have; none if one may be no finite number. An f32
/// has more digits than bfloat16.
#[inline(always)]
fn largest_of(dtype: DType, one: &[u8], other: &[u8]) -> Option<f64> {
    let wide = |element| f32::from_bits(u32::from(u16::from_le_bytes(element)) << 16);
    let single = |element| f64::from(f32::from_le_bytes(element));
    let double = f64::from_le_bytes;
    match dtype {
        DType::Bfloat16 => largest(one, other, |one, other| (wide(one) - wide(other)).abs()),
        DType::Float32 => largest(one, other, |one, other| (single(one) - single(other)).abs()),
        DType::Float64 => largest(one, other, |one, other| (double(one) - double(other)).abs()),
        _ => None,
    }
}

#[inline(always)]
fn largest<const SIZE: usize, Number: Copy + Default + PartialOrd + AddAssign + Into<f64>>(
    one: &[u8],
    other: &[u8],
    difference: impl Fn([u8; SIZE], [u8; SIZE]) -> Number,
) -> Option<f64> {
    const LANES: usize = 16;
    let (ones, last_ones) = one.as_chunks::<SIZE>().0.as_chunks::<LANES>();
    let (others, last_others) = other.as_chunks::<SIZE>().0.as_chunks::<LANES>();
    let (mut largest, mut sum) = ([Number::default(); LANES], [Number::default(); LANES]);
    let mut add = |lane: usize, one, other| {
        let difference = difference(one, other);
        largest[lane] = if difference > largest[lane] { difference } else { largest[lane] };
        sum[lane] += difference; // not finite from the first on that is not
    };
    for (one, other) in ones.iter().zip(others) {
        for lane in 0..LANES {
            add(lane, one[lane], other[lane]);
        }
    }
    for (lane, (one, other)) in last_ones.iter().zip(last_others).enumerate() {
        add(lane, *one, *other);
    }
    let all = sum.into_iter().all(|sum| sum.into().is_finite());
    all.then(|| largest.into_iter().map(Into::into).fold(0.0, f64::max))
}

#[expect(clippy::cast_precision_loss, reason = "a difference beyond 2^53 is shown, not used")]
fn whole_differences(first: &[i128], second: &[i128], bits_count: bool) -> Values {
    let (mut largest, mut different) = (0, 0);
    for (one, other) in first.iter().zip(second) {
        let difference = one.abs_diff(*other);
        largest = difference.max(largest);
        different += u64::from(difference != 0 && !bits_count);
    }
    Values { elements: 0, different, largest: Some(largest as f64), unbounded: 0 }
}

/// The largest difference, how many are not 0, and how many are no finite number; none if any may be none. The compiler
/// makes vectors of the lanes.
#[inline(always)]
fn finite([first, second]: &[[f64; BLOCK_ELEMS]; 2]) -> Option<(f64, u64, u64)> {
    const LANES: usize = 8;
    let (mut largest, mut sum, mut different) = ([0.0_f64; LANES], [0.0_f64; LANES], [0_u64; LANES]);
    for (one, other) in first.as_chunks::<LANES>().0.iter().zip(second.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            let difference = (one[lane] - other[lane]).abs();
            largest[lane] = if difference > largest[lane] { difference } else { largest[lane] };
            sum[lane] += difference; // not finite from the first on that is not
            different[lane] += u64::from(difference != 0.0);
        }
    }
    let all = sum.iter().all(|sum| sum.is_finite());
    all.then(|| (largest.into_iter().fold(0.0, f64::max), different.iter().sum(), 0))
}

/// [`finite`], number by number, with whatever there is among them.
fn any([first, second]: &[[f64; BLOCK_ELEMS]; 2]) -> (f64, u64, u64) {
    let (mut largest, mut different, mut unbounded) = (0.0_f64, 0, 0);
    for (&one, &other) in first.iter().zip(second) {
        let difference = (one - other).abs();
        let same = one.to_bits() == other.to_bits() || (one.is_nan() && other.is_nan());
        different += u64::from(!same && difference != 0.0);
        if difference.is_finite() {
            largest = largest.max(difference);
        } else {
            unbounded += u64::from(!same);
        }
    }
    (largest, different, unbounded)
}

/// How many elements of a block differ. A narrow sum makes wide vectors.
fn count_different(size: usize, one: &[u8], other: &[u8]) -> u16 {
    fn count<const SIZE: usize>(one: &[u8], other: &[u8]) -> u16 {
        let elements = one.as_chunks::<SIZE>().0.iter().zip(other.as_chunks::<SIZE>().0);
        elements.map(|(one, other)| u16::from(one != other)).sum()
    }
    let count = match size {
        1 => count::<1>,
        2 => count::<2>,
        4 => count::<4>,
        8 => count::<8>,
        _ => count::<16>,
    };
    count(one, other)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn bits_count_and_differences_are_of_values() {
        let first = floats(&[1.0, -0.0, f32::NAN, f32::INFINITY, f32::NAN, 5.0]);
        let second = floats(&[1.5, 0.0, 1.0, f32::INFINITY, f32::NAN, 5.0]);
        let found = compare([DType::Float32; 2], [&first, &second]);
        assert_eq!(found, Values { elements: 6, different: 3, largest: Some(0.5), unbounded: 1 });
    }

    #[test]
    fn other_dtypes_are_compared_as_numbers() {
        let first = floats(&[1.0, 2.0, f32::NAN, 257.0]);
        let second: Vec<u8> = [1.0, 2.0, f32::NAN, 257.0]
            .iter()
            .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
            .collect();
        let found = compare([DType::Float32, DType::Bfloat16], [&first, &second]);
        assert_eq!(found, Values { elements: 4, different: 1, largest: Some(1.0), unbounded: 0 });
        let found = compare([DType::Int8, DType::Int64], [&[255], &(-2_i64).to_le_bytes()]);
        assert_eq!(found, Values { elements: 1, different: 1, largest: Some(1.0), unbounded: 0 });
    }

    #[test]
    fn integers_are_compared_exactly() {
        let [first, second] = [(1_i64 << 53) + 1, 1 << 53].map(i64::to_le_bytes);
        let expected = Values { elements: 1, different: 1, largest: Some(1.0), unbounded: 0 };
        for other in [DType::Int64, DType::Uint64] {
            assert_eq!(compare([DType::Int64, other], [&first, &second]), expected);
        }
    }

    #[test]
    fn what_is_no_number_is_compared_by_bits_alone() {
        let found = compare([DType::Complex64; 2], [&[0; 16], &[[0; 8], [1; 8]].concat()]);
        assert_eq!(found, Values { elements: 2, different: 1, largest: None, unbounded: 0 });
        assert!(!are_comparable([DType::Complex64, DType::Float32]));
    }

    #[test]
    fn a_last_block_that_is_shorter_is_compared_alone() {
        let count = i32::try_from(BLOCK_ELEMS).unwrap();
        let first: Vec<u8> = (0..count + 3).flat_map(i32::to_le_bytes).collect();
        let second: Vec<u8> = (0..count + 3)
            .flat_map(|value| i64::from(value + i32::from(value < count)).to_le_bytes())
            .collect();
        let found = compare([DType::Int32, DType::Int64], [&first, &second]);
        assert_eq!((found.elements, found.different, found.largest), (1027, 1024, Some(1.0)));
    }

    #[test]
    fn every_lane_counts() {
        for dtype in [DType::Bfloat16, DType::Float32, DType::Float64] {
            let size = usize::try_from(dtype.size()).unwrap();
            for place in 0..37 {
                let mut other = vec![0; 37 * size];
                other[(place + 1) * size - 1] = 0x40; // 2
                let found = compare([dtype; 2], [&vec![0; 37 * size], &other]);
                assert_eq!((found.different, found.largest), (1, Some(2.0)), "{dtype:?}, {place}");
            }
        }
    }

    #[test]
    fn blocks_add_up() {
        let mut first = floats(&vec![1.0; 3 * BLOCK_ELEMS]);
        let second = first.clone();
        first[..4].copy_from_slice(&2.0_f32.to_le_bytes());
        let last = first.len() - 4;
        first[last..].copy_from_slice(&4.0_f32.to_le_bytes());
        let found = compare([DType::Float32; 2], [&first, &second]);
        assert_eq!((found.elements, found.different, found.largest), (3072, 2, Some(3.0)));
    }
}
