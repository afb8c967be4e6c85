//! Several files read as one, laid out as [`Index::join`] joins their indices.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    FileSource, Input, RemoteFile, Source,
    encoded::Decoder,
    read::in_parallel,
    route::{Asked, Route, Samples, residency::Residency},
    source::ends_early,
};
use crate::{
    error::Result,
    format::{self, Encoding, Index},
    remote::Traffic,
};

/// Threads that look at what the page cache holds of a model's files: more of them wait for each other, as they map the files.
const MAX_PROBING_THREADS: usize = 16;

/// One file, or the payloads of several: offsets count through these, and what lies between two of them reads as zeros.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    payloads: Vec<Payload>,
}

/// A file, and where its payload lies.
#[derive(Debug)]
struct Payload {
    input: Input,
    place: Range<u64>,
    /// If its payload is not stored as it is.
    decoder: Option<Decoder>,
}

impl Payload {
    fn new(input: Input, place: Range<u64>, encoding: Option<&Arc<Encoding>>) -> Self {
        Self { input, place, decoder: encoding.cloned().map(Decoder::new) }
    }

    fn encoding(&self) -> Option<&Arc<Encoding>> {
        self.decoder.as_ref().map(Decoder::encoding)
    }

    /// Where the file stores the bytes `range` of its payload.
    fn stored(&self, range: Range<u64>) -> Range<u64> {
        self.encoding().map_or(range.clone(), |encoding| encoding.stored_range(&range))
    }

    fn len(&self) -> u64 {
        self.encoding().map_or_else(|| self.input.len(), |encoding| encoding.payload_bytes())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(decoder) = &self.decoder else {
            return self.input.read_at(buffer, offset);
        };
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = buffer.len().min(left);
        let read = decoder.read_all_at(&self.input, &mut [&mut buffer[..bytes]], offset);
        read.map(|()| bytes).map_err(io::Error::other)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match &self.decoder {
            None => self.input.read_exact_at(buffer, offset),
            Some(decoder) => decoder.read_all_at(&self.input, &mut [buffer], offset),
        }
    }

    fn read_all_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        match &self.decoder {
            None => self.input.read_all_at(buffers, offset),
            Some(decoder) => decoder.read_all_at(&self.input, buffers, offset),
        }
    }
}

impl Files {
    /// `files`, in the order in which `index` has joined them; errors that concern them all name `path`.
    #[must_use]
    pub fn new(path: &Path, files: Vec<Input>, index: &Index) -> Self {
        let payload = |(input, part): (Input, &format::Part)| {
            Payload::new(input, part.range().clone(), part.encoding())
        };
        Self { path: path.to_owned(), payloads: files.into_iter().zip(index.parts()).map(payload).collect() }
    }

    /// Bytes of all the files, footers and headers included.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.payloads.iter().map(|payload| payload.input.len()).sum()
    }

    /// The same files, each read by the way that `asked` takes to it, of whose parts each file has its own.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) if a thread panicked.
    pub fn choose(&self, asked: Asked<'_>) -> Result<(Self, Route)> {
        let samples = Samples::default();
        let route = |payload: &Payload| {
            let parts = asked.only().into_iter().flatten();
            let own = parts.filter_map(|range| within(range, &payload.place));
            let own: Vec<_> = own.map(|range| payload.stored(range)).collect();
            let (input, route) = payload.input.choose(asked.with_parts(&own), &samples);
            (Payload::new(input, payload.place.clone(), payload.encoding()), route)
        };
        let chosen = in_parallel(&self.payloads, MAX_PROBING_THREADS, route)?;
        let (payloads, routes): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
        Ok((Self { path: self.path.clone(), payloads }, Route::of_all(&routes)))
    }

    /// What the page cache holds; `None` if a file system cannot tell.
    #[must_use]
    pub fn residency(&self) -> Option<Residency> {
        Residency::of_all(self.payloads.iter().map(|payload| payload.input.file().and_then(Residency::probe)))
    }

    /// Bytes of the largest chunks that are stored as frames, if any are.
    #[must_use]
    pub fn encoded_chunk_bytes(&self) -> Option<u64> {
        self.payloads.iter().filter_map(Payload::encoding).map(|encoding| encoding.chunk_bytes()).max()
    }

    /// The files, each with where its payload lies.
    pub fn iter(&self) -> impl Iterator<Item = (&Input, Range<u64>)> {
        self.payloads.iter().map(|payload| (&payload.input, payload.place.clone()))
    }

    /// What reads of those that are objects have taken so far, together; none if all are files.
    #[must_use]
    pub fn traffic(&self) -> Option<Traffic> {
        let objects = self.payloads.iter().filter_map(|payload| payload.input.remote());
        objects.map(RemoteFile::traffic).reduce(Traffic::with)
    }

    /// What is peculiar about reading one of those that are objects, if anything is.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.payloads.iter().filter_map(|payload| payload.input.remote()).find_map(RemoteFile::note)
    }

    /// For whoever outlives the load: each file that is no object, where it begins, and those of the sorted `ranges` that are its own, as
    /// ranges of the file.
    #[must_use]
    pub fn into_ranges(self, ranges: &[Range<u64>]) -> Vec<(FileSource, u64, Vec<Range<u64>>)> {
        let own = |Payload { input, place, .. }: Payload| {
            let within = ranges.iter().filter_map(|range| within(range, &place)).collect();
            Some((input.file()?.clone(), place.start, within))
        };
        self.payloads.into_iter().filter_map(own).collect()
    }

    /// The payload that the byte at `offset` lies in or behind, and where the next one begins or all end.
    fn payload(&self, offset: u64) -> (&Payload, u64) {
        let next = self.payloads.partition_point(|payload| payload.place.start <= offset).max(1);
        let end =
            self.payloads.get(next).map_or_else(|| self.len().max(offset), |payload| payload.place.start);
        (&self.payloads[next - 1], end)
    }

    /// The beginning of `buffer` that a single file, or the gap behind it, has the bytes of; in which file and where.
    /// It is empty at the end of all.
    fn first<'b>(&self, buffer: &'b mut [u8], offset: u64) -> (&'b mut [u8], Option<(&Payload, u64)>) {
        if let [payload] = &*self.payloads {
            return (buffer, Some((payload, offset)));
        }
        let (payload, next) = self.payload(offset);
        let is_within = offset < payload.place.end;
        let end = if is_within { payload.place.end } else { next };
        let bytes = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        (&mut buffer[..bytes], is_within.then(|| (payload, offset - payload.place.start)))
    }
}

/// The part of `range` in `place`, counted from where that starts.
fn within(range: &Range<u64>, place: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (range.start.max(place.start), range.end.min(place.end));
    (start < end).then(|| start - place.start..end - place.start)
}

impl Source for Files {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.first(buffer, offset) {
            (bytes, Some((payload, offset))) => payload.read_at(bytes, offset),
            (bytes, None) => {
                bytes.fill(0);
                Ok(bytes.len())
            }
        }
    }

    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        while !buffer.is_empty() {
            let (bytes, source) = self.first(buffer, offset);
            let count = bytes.len();
            match source {
                Some((payload, offset)) => payload.read_exact_at(bytes, offset)?,
                None if count == 0 => return Err(ends_early(offset, buffer.len()).at(&self.path)),
                None => bytes.fill(0),
            }
            buffer = &mut buffer[count..];
            offset += count as u64;
        }
        Ok(())
    }

    fn read_all_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let bytes: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let (payload, _) = self.payload(offset);
        if offset + bytes <= payload.place.end || self.payloads.len() == 1 {
            return payload.read_all_at(buffers, offset - payload.place.start);
        }
        let mut position = offset;
        for buffer in buffers {
            self.read_exact_at(buffer, position)?;
            position += buffer.len() as u64;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        match &*self.payloads {
            [payload] => payload.len(),
            payloads => payloads.last().map_or(0, |payload| payload.place.end),
        }
    }

    fn is_direct(&self) -> bool {
        self.payloads.iter().any(|payload| payload.input.is_direct())
    }

    fn is_far(&self) -> bool {
        self.payloads.iter().any(|payload| payload.input.is_far())
    }

    fn is_encoded(&self) -> bool {
        self.payloads.iter().any(|payload| payload.decoder.is_some())
    }

    fn distrust(&self, offset: u64, bytes: u64) -> bool {
        let damaged = offset..offset + bytes;
        let payloads =
            self.payloads.iter().filter_map(|payload| Some((payload, within(&damaged, &payload.place)?)));
        // All of them are told.
        payloads.fold(false, |any, (payload, own)| {
            let own = payload.stored(own);
            payload.input.distrust(own.start, own.end - own.start) | any
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn file_at(&self, offset: u64) -> (&Path, u64) {
        let (payload, _) = self.payload(offset);
        (payload.input.path(), payload.place.start)
    }
}
