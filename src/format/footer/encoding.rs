//! How the payload is stored, in the footer.

use serde::Serialize;

use super::raw::{Object, RawEncoding, RawFooter};
use crate::{
    codec::Codec,
    error::{Error, Result},
    format::{Encoding, FORMAT_V5},
};

/// What the footer says of how a payload of `payload_bytes` is stored; `None` in a format that stores it as it is.
pub(super) fn check(raw: &RawFooter<'_>, payload_bytes: u64) -> Result<Option<Encoding>> {
    if raw.format != FORMAT_V5 {
        return Ok(None);
    }
    let text = raw.encoding.ok_or_else(|| {
        Error::format(format!("Corrupt footer: key encoding is missing or null, but {FORMAT_V5} needs it"))
    })?;
    let Object(encoding) = serde_json::from_str::<Object<RawEncoding<'_>>>(text.get())
        .map_err(|error| Error::format(format!("Corrupt footer: key encoding: {error}")))?;
    let mut runs = Vec::with_capacity(encoding.frames.len());
    for Object(run) in &encoding.frames {
        let codec = Codec::from_name(&run.codec).ok_or_else(|| unknown(&run.codec))?;
        runs.push((codec, &run.lengths));
    }
    let frames = runs.iter().flat_map(|(codec, lengths)| lengths.iter().map(|&it| (*codec, u64::from(it))));
    Encoding::new(encoding.chunk_bytes.0, payload_bytes, frames).map(Some)
}

fn unknown(codec: &str) -> Error {
    Error::format(format!(
        "is encoded by {codec:?}, which this version does not know: a newer version of flashpack wrote it, upgrade with \
         `pip install --upgrade flashpack`"
    ))
}

#[derive(Serialize)]
pub(super) struct Rendered {
    chunk_bytes: u64,
    frames: Vec<RenderedFrames>,
}

#[derive(Serialize)]
struct RenderedFrames {
    codec: &'static str,
    lengths: Vec<u64>,
}

/// The value of the key.
pub(super) fn rendered(encoding: &Encoding) -> Rendered {
    let run = |(codec, lengths): (Codec, _)| RenderedFrames { codec: codec.name(), lengths };
    Rendered { chunk_bytes: encoding.chunk_bytes(), frames: encoding.runs().into_iter().map(run).collect() }
}
