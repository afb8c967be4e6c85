//! A payload that is stored in frames, read as if it were stored as it is.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use super::{HostBuffer, Input, Source, source::ends_early};
use crate::{
    error::{Error, ErrorKind, Result, zeroed},
    format::{Encoding, Frame},
    plan::DIRECT_ALIGN_BYTES,
    sync::Unpoisoned as _,
};

/// Stored bytes that one request brings, at most, but for a frame that has more. Each reader has memory for so many.
const REQUEST_BYTES: u64 = 8 << 20;

/// Decodes the frames of a file.
#[derive(Debug)]
pub(super) struct Decoder {
    encoding: Arc<Encoding>,
    /// Memory that no reader uses just now.
    idle: Mutex<Vec<Scratch>>,
}

/// Memory of one reader.
#[derive(Debug, Default)]
struct Scratch {
    stored: Option<HostBuffer>,
    /// A chunk that is not wanted whole, or not in one place.
    chunk: Vec<u8>,
}

impl Decoder {
    pub(super) const fn new(encoding: Arc<Encoding>) -> Self {
        Self { encoding, idle: Mutex::new(Vec::new()) }
    }

    pub(super) const fn encoding(&self) -> &Arc<Encoding> {
        &self.encoding
    }

    /// Fills `buffers`, one after the other, with the payload from `offset`, by as few requests to `input` as wait.
    pub(super) fn read_all_at(&self, input: &Input, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let bytes: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let wanted = offset..offset.saturating_add(bytes);
        let end = self.encoding.payload_bytes();
        if wanted.end > end {
            let missing = usize::try_from(wanted.end - end.max(offset)).unwrap_or(usize::MAX);
            return Err(ends_early(end, missing).at(input.path()));
        }
        let mut scratch = self.take();
        let outcome = self.read(input, &mut Places::new(buffers), &wanted, &mut scratch);
        self.idle.lock().unpoisoned().push(scratch);
        outcome
    }

    fn take(&self) -> Scratch {
        self.idle.lock().unpoisoned().pop().unwrap_or_default()
    }

    fn read(
        &self,
        input: &Input,
        places: &mut Places<'_, '_>,
        wanted: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        // What the page cache gives is best decoded while the core's cache holds it.
        let together = if input.is_far() || input.is_direct() { REQUEST_BYTES } else { 0 };
        let mut frames = self.encoding.frames(wanted).peekable();
        while let Some(first) = frames.next() {
            let start = first.stored.start;
            let mut run = vec![first];
            while let Some(next) = frames.next_if(|next| next.stored.end - start <= together) {
                run.push(next);
            }
            let end = run[run.len() - 1].stored.end;
            let Scratch { stored, chunk } = &mut *scratch;
            let stored = room(stored, start..end, input.is_direct())?;
            input.read_exact_at(stored, start)?;
            for frame in &run {
                let from = to_usize(frame.stored.start - start);
                let bytes = &stored[from..from + to_usize(frame.stored.end - frame.stored.start)];
                decode(frame, bytes, wanted, places, chunk).map_err(|error| error.at(input.path()))?;
            }
        }
        Ok(())
    }
}

/// Memory for the bytes `stored` of a file, at the same place within a unit of direct reads as there. If they land in it
/// (`direct`), no child process shares it.
fn room(memory: &mut Option<HostBuffer>, stored: Range<u64>, direct: bool) -> Result<&mut [u8]> {
    let phase = to_usize(stored.start % DIRECT_ALIGN_BYTES);
    let bytes = phase + to_usize(stored.end - stored.start);
    if memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
        *memory = None; // before there is more
        let memory = memory.insert(HostBuffer::new(bytes.next_power_of_two())?);
        if direct {
            memory.keep_from_children();
        }
    }
    let memory = memory.as_mut().expect("it was just made").as_mut_slice();
    Ok(&mut memory[phase..bytes])
}

/// Decodes `bytes`, of `frame`, and puts what is `wanted` of its chunk in its places.
fn decode(
    frame: &Frame,
    bytes: &[u8],
    wanted: &Range<u64>,
    places: &mut Places<'_, '_>,
    scratch: &mut Vec<u8>,
) -> Result<()> {
    let Frame { chunk, stored, codec } = frame;
    let length = to_usize(chunk.end - chunk.start);
    let from = to_usize(wanted.start.saturating_sub(chunk.start));
    let to = to_usize(wanted.end.min(chunk.end) - chunk.start);
    let damaged = |_| {
        let what = format!(
            "the chunk of bytes {chunk:?} is damaged: its {} stored bytes from {} on are no frame of {}",
            bytes.len(),
            stored.start,
            codec.name()
        );
        Error::new(ErrorKind::Checksum, what).from_byte(chunk.start)
    };
    if to - from == length
        && let Some(place) = places.whole(length)
    {
        return codec.decode(bytes, place).map_err(damaged);
    }
    if scratch.len() < length {
        *scratch = zeroed(length as u64)?;
    }
    codec.decode(bytes, &mut scratch[..length]).map_err(damaged)?;
    places.copy(&scratch[from..to]);
    Ok(())
}

/// Where the bytes go that come next.
struct Places<'b, 'm> {
    buffers: &'b mut [&'m mut [u8]],
    /// Bytes of the first buffer that are filled.
    filled: usize,
}

impl<'b, 'm> Places<'b, 'm> {
    const fn new(buffers: &'b mut [&'m mut [u8]]) -> Self {
        Self { buffers, filled: 0 }
    }

    /// The place of the next `length` bytes, if it is one.
    fn whole(&mut self, length: usize) -> Option<&mut [u8]> {
        self.pass_full();
        let Self { buffers, filled } = self;
        let place = buffers.first_mut()?.get_mut(*filled..*filled + length)?;
        *filled += length;
        Some(place)
    }

    /// Puts `bytes` in the next places.
    fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.pass_full();
            let room = &mut self.buffers[0][self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
        }
    }

    fn pass_full(&mut self) {
        while self.buffers.first().is_some_and(|buffer| buffer.len() == self.filled) {
            let buffers = std::mem::take(&mut self.buffers);
            (self.buffers, self.filled) = (&mut buffers[1..], 0);
        }
    }
}

/// Chunks and frames are small.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("chunks and frames fit in memory")
}
