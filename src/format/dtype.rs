//! The element types a macroblock may hold.

use std::fmt;

use crate::codec::Element;

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $size:literal, $safetensors:expr;)*) => {
        /// An element type. The discriminant is torch's `ScalarType` number (`torch/headeronly/core/ScalarType.h`),
        /// which its stable ABI keeps fixed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[allow(missing_docs, reason = "the variants are torch's dtypes")]
        pub enum DType { $($variant = $code,)* }

        impl DType {
            /// Every element type, in the order of torch's numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// torch's name without the `torch.` prefix, as a footer spells it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bytes of one element.
            #[must_use]
            pub const fn size(self) -> u64 {
                match self { $(Self::$variant => $size,)* }
            }

            /// The safetensors type with the same elements, if there is one.
            #[must_use]
            pub const fn to_safetensors(self) -> Option<safetensors::Dtype> {
                match self { $(Self::$variant => $safetensors,)* }
            }

            /// The type a footer calls `name`.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// The type with torch's `ScalarType` number `code`.
            #[must_use]
            pub const fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

use safetensors::Dtype as St;

dtypes! {
    Uint8 = 0, "uint8", 1, Some(St::U8);
    Int8 = 1, "int8", 1, Some(St::I8);
    Int16 = 2, "int16", 2, Some(St::I16);
    Int32 = 3, "int32", 4, Some(St::I32);
    Int64 = 4, "int64", 8, Some(St::I64);
    Float16 = 5, "float16", 2, Some(St::F16);
    Float32 = 6, "float32", 4, Some(St::F32);
    Float64 = 7, "float64", 8, Some(St::F64);
    Complex32 = 8, "complex32", 4, None;
    Complex64 = 9, "complex64", 8, Some(St::C64);
    Complex128 = 10, "complex128", 16, None;
    Bool = 11, "bool", 1, Some(St::BOOL);
    Bfloat16 = 15, "bfloat16", 2, Some(St::BF16);
    Float8E5m2 = 23, "float8_e5m2", 1, Some(St::F8_E5M2);
    Float8E4m3fn = 24, "float8_e4m3fn", 1, Some(St::F8_E4M3);
    Float8E5m2fnuz = 25, "float8_e5m2fnuz", 1, Some(St::F8_E5M2FNUZ);
    Float8E4m3fnuz = 26, "float8_e4m3fnuz", 1, Some(St::F8_E4M3FNUZ);
    Uint16 = 27, "uint16", 2, Some(St::U16);
    Uint32 = 28, "uint32", 4, Some(St::U32);
    Uint64 = 29, "uint64", 8, Some(St::U64);
    Float8E8m0fnu = 44, "float8_e8m0fnu", 1, Some(St::F8_E8M0);
    Float4E2m1fnX2 = 45, "float4_e2m1fn_x2", 1, Some(St::F4);
}

impl DType {
    /// Elements of safetensors in one of torch, which counts values that share bytes as one.
    #[must_use]
    pub fn safetensors_elems(self) -> u64 {
        self.to_safetensors().map_or(1, |other| 8 * self.size() / other.bitsize() as u64)
    }

    /// The floating numbers that an element is or consists of, of those that codecs know.
    #[must_use]
    pub const fn element(self) -> Option<Element> {
        match self {
            Self::Float8E5m2 | Self::Float8E4m3fn | Self::Float8E5m2fnuz | Self::Float8E4m3fnuz => {
                Some(Element::One)
            }
            Self::Float16 | Self::Bfloat16 | Self::Complex32 => Some(Element::Two),
            Self::Float32 | Self::Complex64 => Some(Element::Four),
            Self::Float64
            | Self::Complex128
            | Self::Float8E8m0fnu
            | Self::Float4E2m1fnX2
            | Self::Uint8
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Bool
            | Self::Uint16
            | Self::Uint32
            | Self::Uint64 => None,
        }
    }

    /// Whether casting to other floating types makes sense: of floating numbers, one to an element.
    #[must_use]
    pub const fn is_castable_float(self) -> bool {
        match self {
            Self::Float16
            | Self::Float32
            | Self::Float64
            | Self::Bfloat16
            | Self::Float8E5m2
            | Self::Float8E4m3fn
            | Self::Float8E5m2fnuz
            | Self::Float8E4m3fnuz
            | Self::Float8E8m0fnu => true,
            Self::Float4E2m1fnX2
            | Self::Uint8
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Complex32
            | Self::Complex64
            | Self::Complex128
            | Self::Bool
            | Self::Uint16
            | Self::Uint32
            | Self::Uint64 => false,
        }
    }

    /// The elements between two legal starts of records of this type under `align_bytes`; at least 1.
    pub(super) fn align_elems(self, align_bytes: u64) -> u64 {
        let (mut a, mut b) = (align_bytes, self.size());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        (align_bytes / a).max(1)
    }

    /// The type with the same elements as safetensors' `dtype`, if there is one.
    #[must_use]
    pub fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        Self::ALL.iter().copied().find(|candidate| candidate.to_safetensors() == Some(dtype))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_codes_and_safetensors_types_lead_back() {
        for &dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(DType::from_code(dtype as i32), Some(dtype));
            if let Some(other) = dtype.to_safetensors() {
                assert_eq!(DType::from_safetensors(other), Some(dtype));
            }
        }
        let several = DType::ALL.iter().filter(|dtype| dtype.safetensors_elems() != 1);
        assert_eq!(several.collect::<Vec<_>>(), [&DType::Float4E2m1fnX2]);
        assert_eq!(DType::Float4E2m1fnX2.safetensors_elems(), 2);
        assert_eq!(DType::from_name("Tensor"), None);
        assert_eq!(DType::from_code(12), None);
    }
}
