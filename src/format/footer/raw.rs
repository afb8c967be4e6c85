//! A footer as it is written: its keys and their types, unchecked otherwise.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::format::{Shape, shape::Count};

/// A JSON object: serde alone would take a list for a struct, too, its values for the fields in turn.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> std::result::Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

#[derive(Deserialize)]
pub(super) struct RawFooter<'a> {
    #[serde(borrow)]
    pub(super) format: Cow<'a, str>,
    pub(super) align_bytes: Count,
    #[serde(borrow)]
    pub(super) target_dtype: Option<Cow<'a, str>>,
    pub(super) total_elems: Count,
    pub(super) total_payload_bytes: Option<Count>,
    #[serde(borrow)]
    pub(super) macroblocks: Option<Vec<Object<RawBlock<'a>>>>,
    #[serde(borrow)]
    pub(super) index: Vec<Object<RawRecord<'a>>>,
    #[serde(borrow)]
    pub(super) checksums: Option<Object<RawChecksums<'a>>>,
    #[serde(borrow)]
    pub(super) signature: Option<Object<RawSignature<'a>>>,
    /// How the payload is stored in a file of [`FORMAT_V5`](crate::format::FORMAT_V5).
    #[serde(borrow)]
    pub(super) encoding: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// How the one macroblock of [`FORMAT_V3`] is compressed.
    #[serde(borrow)]
    pub(super) fpz: Option<&'a RawValue>,
}

// Unknown keys of the footer are extensions, which a reader may ignore. In a macroblock or a record they would say
// something about the bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBlock<'a> {
    #[serde(borrow)]
    pub(super) dtype: Cow<'a, str>,
    pub(super) offset_bytes: Count,
    pub(super) length_bytes: Count,
    pub(super) length_elems: Count,
    /// How the macroblock is compressed.
    #[serde(borrow)]
    pub(super) fpz: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecord<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    pub(super) shape: Shape,
    pub(super) offset: Count,
    pub(super) length: Count,
    pub(super) macroblock: Option<Count>,
}

#[derive(Deserialize)]
pub(super) struct RawChecksums<'a> {
    #[serde(borrow)]
    pub(super) algorithm: Cow<'a, str>,
    pub(super) chunk_bytes: Count,
    #[serde(borrow)]
    pub(super) digests: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) footer: Cow<'a, str>,
}

#[derive(Deserialize)]
pub(super) struct RawSignature<'a> {
    #[serde(borrow)]
    pub(super) algorithm: Cow<'a, str>,
    /// What it and `signature` are is for the algorithm to say.
    #[serde(borrow)]
    pub(super) public_key: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) signature: Option<&'a RawValue>,
}

// Unknown keys here would say something about the bytes, too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEncoding<'a> {
    pub(super) chunk_bytes: Count,
    #[serde(borrow)]
    pub(super) frames: Vec<Object<RawFrames<'a>>>,
}

/// Frames that follow each other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFrames<'a> {
    #[serde(borrow)]
    pub(super) codec: Cow<'a, str>,
    /// As many as fit are longer than any frame.
    pub(super) lengths: Vec<u32>,
}
