//! Element conversions between the common floating types, rounding to nearest, ties to even, as torch does.

use half::{bf16, f16};

use crate::format::DType;

/// Converts the elements in `from`, of one type, and appends them to `to` in another.
pub(crate) type Cast = fn(from: &[u8], to: &mut Vec<u8>);

/// A common floating type, little endian in bytes. Narrowing goes through `f32`, as torch's does.
trait Float: Sized {
    fn read(bytes: &[u8]) -> impl Iterator<Item = f64>;
    fn push(value: f64, to: &mut Vec<u8>);
}

macro_rules! float {
    ($type:ty, $size:literal, |$value:ident| $from_f64:expr) => {
        impl Float for $type {
            fn read(bytes: &[u8]) -> impl Iterator<Item = f64> {
                bytes.as_chunks::<$size>().0.iter().map(|&bytes| f64::from(<$type>::from_le_bytes(bytes)))
            }
            fn push($value: f64, to: &mut Vec<u8>) {
                to.extend_from_slice(&($from_f64).to_le_bytes());
            }
        }
    };
}

#[expect(clippy::cast_possible_truncation, reason = "narrowing is what a cast is for")]
const fn narrow(value: f64) -> f32 {
    value as f32
}

float!(f64, 8, |value| value);
float!(f32, 4, |value| narrow(value));
float!(f16, 2, |value| f16::from_f32(narrow(value)));
float!(bf16, 2, |value| bf16::from_f32(narrow(value)));

fn cast<From: Float, To: Float>(from: &[u8], to: &mut Vec<u8>) {
    From::read(from).for_each(|value| To::push(value, to));
}

/// The conversion from `from` to `to`, if both are among float64, float32, float16 and bfloat16.
pub(crate) fn between(from: DType, to: DType) -> Option<Cast> {
    fn into<From: Float>(to: DType) -> Option<Cast> {
        Some(match to {
            DType::Float64 => cast::<From, f64>,
            DType::Float32 => cast::<From, f32>,
            DType::Float16 => cast::<From, f16>,
            DType::Bfloat16 => cast::<From, bf16>,
            _ => return None,
        })
    }
    match from {
        DType::Float64 => into::<f64>(to),
        DType::Float32 => into::<f32>(to),
        DType::Float16 => into::<f16>(to),
        DType::Bfloat16 => into::<bf16>(to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: DType, to: DType, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        between(from, to).unwrap()(bytes, &mut out);
        out
    }

    #[test]
    fn rounds_to_nearest_even_and_saturates_to_infinity() {
        let bytes: Vec<u8> =
            [1.0_f32, 2049.0, 2051.0, 65520.0, -0.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let halves = run(DType::Float32, DType::Float16, &bytes);
        let values: Vec<f32> = f16::read(&halves).map(narrow).collect();
        assert_eq!(values, [1.0, 2048.0, 2052.0, f32::INFINITY, 0.0]);
        assert_eq!(halves[8..], [0, 0x80], "the sign of zero is kept");
    }

    #[test]
    fn widening_is_exact() {
        let every_half: Vec<u8> = (0..=u16::MAX)
            .filter(|&bits| !f16::from_bits(bits).is_nan())
            .flat_map(u16::to_le_bytes)
            .collect();
        let wide = run(DType::Float16, DType::Float64, &every_half);
        assert_eq!(run(DType::Float64, DType::Float16, &wide), every_half);
    }

    #[test]
    fn other_types_have_no_cast() {
        assert!(between(DType::Int8, DType::Float32).is_none());
        assert!(between(DType::Float32, DType::Float8E4m3fn).is_none());
    }
}
