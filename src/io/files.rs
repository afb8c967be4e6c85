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
    parts: Vec<Part>,
}

/// A file, and where its payload lies.
#[derive(Debug)]
struct Part {
    input: Input,
    place: Range<u64>,
    /// If its payload is not stored as it is.
    decoder: Option<Decoder>,
}

impl Part {
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
        let part =
            |(input, part): (Input, &format::Part)| Part::new(input, part.range().clone(), part.encoding());
        Self { path: path.to_owned(), parts: files.into_iter().zip(index.parts()).map(part).collect() }
    }

    /// Bytes of all the files, footers and headers included.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.input.len()).sum()
    }

    /// The same files, each read by the way that `asked` takes to it, of whose parts each file has its own.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) if a thread panicked.
    pub fn choose(&self, asked: Asked<'_>) -> Result<(Self, Route)> {
        let samples = Samples::default();
        let route = |part: &Part| {
            let parts = asked.only().into_iter().flatten();
            let own = parts.filter_map(|range| within(range, &part.place));
            let own: Vec<_> = own.map(|range| part.stored(range)).collect();
            let (input, route) = part.input.choose(asked.with_parts(&own), &samples);
            (Part::new(input, part.place.clone(), part.encoding()), route)
        };
        let chosen = in_parallel(&self.parts, MAX_PROBING_THREADS, route)?;
        let (parts, routes): (Vec<_>, Vec<_>) = chosen.into_iter().unzip();
        Ok((Self { path: self.path.clone(), parts }, Route::of_all(&routes)))
    }

    /// What the page cache holds; `None` if a file system cannot tell.
    #[must_use]
    pub fn residency(&self) -> Option<Residency> {
        Residency::of_all(self.parts.iter().map(|part| part.input.file().and_then(Residency::probe)))
    }

    /// Bytes of the largest chunks that are stored as frames, if any are.
    #[must_use]
    pub fn encoded_chunk_bytes(&self) -> Option<u64> {
        self.parts.iter().filter_map(Part::encoding).map(|encoding| encoding.chunk_bytes()).max()
    }

    /// The files, each with where its payload lies.
    pub fn iter(&self) -> impl Iterator<Item = (&Input, Range<u64>)> {
        self.parts.iter().map(|part| (&part.input, part.place.clone()))
    }

    /// What reads of those that are objects have taken so far, together; none if all are files.
    #[must_use]
    pub fn traffic(&self) -> Option<Traffic> {
        let objects = self.parts.iter().filter_map(|part| part.input.remote());
        objects.map(RemoteFile::traffic).reduce(Traffic::with)
    }

    /// What is peculiar about reading one of those that are objects, if anything is.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.parts.iter().filter_map(|part| part.input.remote()).find_map(RemoteFile::note)
    }

    /// For whoever outlives the load: each file that is no object, where it begins, and those of the sorted `ranges` that are its own, as
    /// ranges of the file.
    #[must_use]
    pub fn into_ranges(self, ranges: &[Range<u64>]) -> Vec<(FileSource, u64, Vec<Range<u64>>)> {
        let own = |Part { input, place, .. }: Part| {
            let within = ranges.iter().filter_map(|range| within(range, &place)).collect();
            Some((input.file()?.clone(), place.start, within))
        };
        self.parts.into_iter().filter_map(own).collect()
    }

    /// The part that the byte at `offset` lies in or behind, and where the next one begins or all end.
    fn part(&self, offset: u64) -> (&Part, u64) {
        let next = self.parts.partition_point(|part| part.place.start <= offset).max(1);
        let end = self.parts.get(next).map_or_else(|| self.len().max(offset), |part| part.place.start);
        (&self.parts[next - 1], end)
    }

    /// The beginning of `buffer` that a single file, or the gap behind it, has the bytes of; in which file and where.
    /// It is empty at the end of all.
    fn first<'b>(&self, buffer: &'b mut [u8], offset: u64) -> (&'b mut [u8], Option<(&Part, u64)>) {
        if let [part] = &*self.parts {
            return (buffer, Some((part, offset)));
        }
        let (part, next) = self.part(offset);
        let in_part = offset < part.place.end;
        let end = if in_part { part.place.end } else { next };
        let bytes = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        (&mut buffer[..bytes], in_part.then(|| (part, offset - part.place.start)))
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
            (bytes, Some((part, offset))) => part.read_at(bytes, offset),
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
                Some((part, offset)) => part.read_exact_at(bytes, offset)?,
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
        let (part, _) = self.part(offset);
        if offset + bytes <= part.place.end || self.parts.len() == 1 {
            return part.read_all_at(buffers, offset - part.place.start);
        }
        let mut position = offset;
        for buffer in buffers {
            self.read_exact_at(buffer, position)?;
            position += buffer.len() as u64;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        match &*self.parts {
            [part] => part.len(),
            parts => parts.last().map_or(0, |part| part.place.end),
        }
    }

    fn is_direct(&self) -> bool {
        self.parts.iter().any(|part| part.input.is_direct())
    }

    fn is_far(&self) -> bool {
        self.parts.iter().any(|part| part.input.is_far())
    }

    fn is_encoded(&self) -> bool {
        self.parts.iter().any(|part| part.decoder.is_some())
    }

    fn distrust(&self, offset: u64, bytes: u64) -> bool {
        let damaged = offset..offset + bytes;
        let parts = self.parts.iter().filter_map(|part| Some((part, within(&damaged, &part.place)?)));
        // All of them are told.
        parts.fold(false, |any, (part, own)| {
            let own = part.stored(own);
            part.input.distrust(own.start, own.end - own.start) | any
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn file_at(&self, offset: u64) -> (&Path, u64) {
        let (part, _) = self.part(offset);
        (part.input.path(), part.place.start)
    }
}
