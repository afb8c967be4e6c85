//! How a payload is stored that is not stored as it is.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    codec::{Codec, MAX_RATIO},
    error::{Error, Result},
    format::checksum::check_chunk_bytes,
};

/// The payload in chunks, each stored as a frame: one behind the other, from the file's first byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    chunk_bytes: u64,
    payload_bytes: u64,
    frames: Box<[(Codec, u64)]>,
}

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the chunk lies in the payload.
    pub chunk: Range<u64>,
    /// Where its frame lies in the file.
    pub stored: Range<u64>,
    /// What decodes it.
    pub codec: Codec,
}

impl Encoding {
    /// A payload of `payload_bytes` in chunks of `chunk_bytes`, with the codec and the length of each frame.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format): sizes that no chunks have, or frames that cannot be theirs.
    pub fn new(
        chunk_bytes: u64,
        payload_bytes: u64,
        lengths: impl Iterator<Item = (Codec, u64)>,
    ) -> Result<Self> {
        check_chunk_bytes("encoding", chunk_bytes)?;
        let (mut frames, mut from, mut end) = (Vec::new(), 0_u64, 0_u64);
        for (codec, length) in lengths {
            let bytes = chunk_bytes.min(payload_bytes - from);
            check_length(frames.len(), codec, length, bytes)?;
            (from, end) = (from + bytes, end + length); // no more than the payload
            frames.push((codec, end));
        }
        if from < payload_bytes {
            return Err(Error::format(format!(
                "encoding has {} frames, but a payload of {payload_bytes} bytes has {} chunks of {chunk_bytes}",
                frames.len(),
                payload_bytes.div_ceil(chunk_bytes)
            )));
        }
        Ok(Self { chunk_bytes, payload_bytes, frames: frames.into() })
    }

    /// Bytes of payload in a chunk; the last one may be shorter.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Bytes of the payload.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Bytes of all frames.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |(_, end)| *end)
    }

    /// The frames of the chunks that the bytes `range` of the payload lie in.
    pub fn frames(&self, range: &Range<u64>) -> impl Iterator<Item = Frame> {
        let end = range.end.min(self.payload_bytes);
        let past = if range.start < end { end.div_ceil(self.chunk_bytes) } else { 0 };
        (range.start / self.chunk_bytes..past).map(|number| self.frame(number))
    }

    fn frame(&self, number: u64) -> Frame {
        let place = usize::try_from(number).expect("chunks that exist are counted in memory");
        let (codec, end) = self.frames[place];
        let start = place.checked_sub(1).map_or(0, |before| self.frames[before].1);
        let from = number * self.chunk_bytes;
        let to = (from + self.chunk_bytes).min(self.payload_bytes);
        Frame { chunk: from..to, stored: start..end, codec }
    }

    /// Where the chunks of the bytes `range` of the payload are stored.
    #[must_use]
    pub fn stored_range(&self, range: &Range<u64>) -> Range<u64> {
        let mut frames = self.frames(range).map(|frame| frame.stored);
        let first = frames.next().unwrap_or(0..0);
        frames.last().map_or(first.clone(), |last| first.start..last.end)
    }

    /// The names of the codecs, and the bytes of the chunks that each decodes.
    #[must_use]
    pub fn codecs(&self) -> BTreeMap<&'static str, u64> {
        let mut bytes = BTreeMap::new();
        for frame in self.frames(&(0..self.payload_bytes)) {
            *bytes.entry(frame.codec.name()).or_default() += frame.chunk.end - frame.chunk.start;
        }
        bytes
    }

    /// Runs of frames of one codec: their lengths.
    pub(in crate::format) fn runs(&self) -> Vec<(Codec, Vec<u64>)> {
        let mut runs: Vec<(Codec, Vec<u64>)> = Vec::new();
        let mut start = 0;
        for &(codec, end) in &self.frames {
            match runs.last_mut().filter(|(last, _)| *last == codec) {
                Some((_, lengths)) => lengths.push(end - start),
                None => runs.push((codec, vec![end - start])),
            }
            start = end;
        }
        runs
    }
}

/// Refuses frame `number` if none of a chunk of `bytes` has such a length.
fn check_length(number: usize, codec: Codec, length: u64, bytes: u64) -> Result<()> {
    let least = if codec == Codec::Raw { bytes } else { bytes.div_ceil(MAX_RATIO) };
    if bytes > 0 && (least..=bytes).contains(&length) {
        return Ok(());
    }
    Err(Error::format(format!(
        "encoding has a frame {number} of {length} bytes by {}, but its chunk has {bytes} bytes, which take {least} to \
         {bytes}",
        codec.name(),
    )))
}
