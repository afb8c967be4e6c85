//! Shapes, thousands of them.

use std::{fmt, ops};

use serde::{Deserialize, Deserializer, de};
use smallvec::SmallVec;

/// Sizes of a tensor's dimensions. Up to four lie in the value itself: memory of its own for each of thousands of
/// tensors takes longer to get and to give back than all that is done with them.
#[derive(Default, PartialEq, Eq)]
pub struct Shape(SmallVec<[u64; 4]>);

impl Clone for Shape {
    /// At once: `SmallVec`'s own goes size by size.
    fn clone(&self) -> Self {
        Self(SmallVec::from_slice(&self.0))
    }
}

impl ops::Deref for Shape {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl ops::DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<&[u64]> for Shape {
    fn from(sizes: &[u64]) -> Self {
        Self(SmallVec::from_slice(sizes))
    }
}

impl From<[u64; 1]> for Shape {
    fn from(sizes: [u64; 1]) -> Self {
        Self::from(sizes.as_slice())
    }
}

impl FromIterator<u64> for Shape {
    fn from_iter<I: IntoIterator<Item = u64>>(sizes: I) -> Self {
        Self(sizes.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
                let mut sizes = SmallVec::new();
                while let Some(Count(size)) = sequence.next_element()? {
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

/// A non-negative integer; serde's own `u64` would name Rust's type in its messages.
#[derive(Clone, Copy)]
pub(super) struct Count(pub(super) u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 0 to 2^64-1")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<Count, E> {
                Ok(Count(value))
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

/// The product of a shape, if the strides of a tensor of that shape (which skip zeros) fit `i64` too.
pub(super) fn product(shape: &[u64]) -> Option<u64> {
    let span = shape.iter().try_fold(1_u64, |span, &size| span.checked_mul(size.max(1)))?;
    i64::try_from(span).ok()?;
    Some(if shape.contains(&0) { 0 } else { span })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_lists_of_any_length() {
        for dims in 0..9 {
            let sizes: Vec<u64> = (0..dims).map(|dim| u64::MAX - dim).collect();
            let shape: Shape = serde_json::from_str(&format!("{sizes:?}")).unwrap();
            assert_eq!(*shape, *sizes);
            assert_eq!(shape, sizes.iter().copied().collect());
            assert_eq!(format!("{shape:?}"), format!("{sizes:?}"));
        }
        for wrong in ["3", "[-1]", "[1.5]", "[\"1\"]", "{}", "null", "[18446744073709551616]"] {
            assert!(serde_json::from_str::<Shape>(wrong).is_err(), "{wrong}");
        }
    }
}
