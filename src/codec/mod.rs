//! Lossless codecs for the chunks of a payload: bytes in, bytes out. What a codec gives back is what it was given, bit by
//! bit, whatever the bytes are; what they were meant to be only decides how few bytes it takes.
//!
//! Trained weights of one tensor have few exponents, and mantissas like noise. So the codecs turn each element such that its
//! exponent comes first (its bits rotated left by one: the sign is then last), code the first byte of each, and keep the
//! others as they are.

mod dispatch;
mod fixed;
mod words;
mod zstd;

use crate::error::{Error, Result};

/// How the bytes of a chunk are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// The first byte of each element in a few bits, in blocks of which each has its own base and width.
    Fixed(Element),
    /// The first byte of each element by zstd, that is, by its Huffman codes.
    Zstd(Element),
}

/// What a codec takes the bytes for: floating numbers of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Of one, as `float8_e4m3fn`.
    One,
    /// Of two, as `bfloat16`.
    Two,
    /// Of four, as `float32`.
    Four,
}

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Decoded at the speed of memory: [`Codec::Fixed`].
    Fast,
    /// Fewer bytes, for storage that is slow: [`Codec::Zstd`].
    Small,
}

/// The bytes of a frame are no codec's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A chunk has at most so many times the bytes of its frame: no small file asks for much memory.
pub const MAX_RATIO: u64 = 4;

impl Codec {
    /// All of them, with their names in a footer.
    pub const NAMES: [(Self, &'static str); 7] = [
        (Self::Raw, "raw"),
        (Self::Fixed(Element::One), "fixed8"),
        (Self::Fixed(Element::Two), "fixed16"),
        (Self::Fixed(Element::Four), "fixed32"),
        (Self::Zstd(Element::One), "zstd8"),
        (Self::Zstd(Element::Two), "zstd16"),
        (Self::Zstd(Element::Four), "zstd32"),
    ];

    /// What it is called in a footer.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(codec, _)| *codec == self).map_or("", |(_, name)| name)
    }

    /// The codec of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(codec, _)| codec)
    }

    /// Fills all of `chunk` with what `frame` encodes.
    ///
    /// # Errors
    /// [`Malformed`] for a frame that is none, or one of a chunk of another length; the chunk then holds anything.
    pub fn decode(self, frame: &[u8], chunk: &mut [u8]) -> std::result::Result<(), Malformed> {
        match self {
            Self::Raw if frame.len() == chunk.len() => {
                chunk.copy_from_slice(frame);
                Some(())
            }
            Self::Raw => None,
            Self::Fixed(Element::One) => dispatch::fixed::<1>(frame, chunk),
            Self::Fixed(Element::Two) => dispatch::fixed::<2>(frame, chunk),
            Self::Fixed(Element::Four) => dispatch::fixed::<4>(frame, chunk),
            Self::Zstd(Element::One) => zstd::decode::<1>(frame, chunk),
            Self::Zstd(Element::Two) => zstd::decode::<2>(frame, chunk),
            Self::Zstd(Element::Four) => zstd::decode::<4>(frame, chunk),
        }
        .ok_or(Malformed)
    }

    /// The frame of `chunk`.
    #[must_use]
    pub fn encode(self, chunk: &[u8]) -> Vec<u8> {
        match self {
            Self::Raw => chunk.to_vec(),
            Self::Fixed(Element::One) => dispatch::fixed_encoded::<1>(chunk),
            Self::Fixed(Element::Two) => dispatch::fixed_encoded::<2>(chunk),
            Self::Fixed(Element::Four) => dispatch::fixed_encoded::<4>(chunk),
            Self::Zstd(Element::One) => zstd::encode::<1>(chunk),
            Self::Zstd(Element::Two) => zstd::encode::<2>(chunk),
            Self::Zstd(Element::Four) => zstd::encode::<4>(chunk),
        }
    }
}

impl Level {
    /// Both, with their names.
    const NAMES: [(Self, &str); 2] = [(Self::Fast, "fast"), (Self::Small, "small")];

    /// The level that a caller names, if one is named.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that is none.
    pub fn asked(name: Option<&str>) -> Result<Option<Self>> {
        let level = |name: &str| {
            let found = Self::NAMES.into_iter().find(|(_, known)| *known == name);
            let unknown = || Error::argument(format!("unknown compression {name:?}: expected fast or small"));
            found.map(|(level, _)| level).ok_or_else(unknown)
        };
        name.map(level).transpose()
    }

    /// The shortest frame of `chunk`, which holds such elements, and its codec: [`Codec::Raw`] unless another takes clearly
    /// less, as its chunks are copied and not decoded.
    #[must_use]
    pub fn encode(self, element: Option<Element>, chunk: &[u8]) -> (Codec, Vec<u8>) {
        let worth = chunk.len() - chunk.len() / 32;
        let least = chunk.len().div_ceil(usize::try_from(MAX_RATIO).expect("a small number"));
        let codecs = match (self, element) {
            (_, None) => vec![],
            (Self::Fast, Some(element)) => vec![Codec::Fixed(element)],
            (Self::Small, Some(element)) => vec![Codec::Zstd(element), Codec::Fixed(element)],
        };
        let frames = codecs.into_iter().map(|codec| (codec, codec.encode(chunk)));
        let mut fitting = frames.filter(|(_, frame)| (least..worth).contains(&frame.len()));
        fitting.next().unwrap_or_else(|| (Codec::Raw, chunk.to_vec()))
    }
}
