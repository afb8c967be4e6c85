//! Digests, compared while bytes pass.

use std::{ops::Range, slice};

use super::bound::to_usize;
use crate::{
    error::{Error, ErrorKind, Result},
    format::{
        Checksums, Index, Record,
        checksum::{Digest, Hasher},
    },
    io::Source,
    plan::Chunk,
    progress::Progress,
    stats::{Lap, Stage},
};

/// The digests of chunks that follow each other, compared as their bytes pass.
pub(super) struct Digests<'a, S> {
    source: &'a S,
    index: &'a Index,
    progress: Progress<'a>,
    run: &'a [Chunk],
    chunks: slice::Iter<'a, Chunk>,
    open: Option<OpenChunk<'a>>,
    /// Bytes of the chunks that have passed since it began.
    passed: u64,
    /// The most these ever were: what `progress` was told of.
    told: u64,
    /// Whether any chunk has one.
    wanted: bool,
}

/// A chunk of which not all bytes have passed.
struct OpenChunk<'a> {
    chunk: &'a Chunk,
    hasher: Option<Hasher>,
    /// Bytes that are still to come.
    missing: usize,
}

impl<'a, S: Source> Digests<'a, S> {
    /// Those of `run` as `index` has them; `progress` is told of each chunk that has passed.
    pub(super) fn new(source: &'a S, index: &'a Index, progress: Progress<'a>, run: &'a [Chunk]) -> Self {
        let wanted = run.iter().any(|chunk| chunk.digest.is_some());
        Self { source, index, progress, run, chunks: run.iter(), open: None, passed: 0, told: 0, wanted }
    }

    /// Begins again with the first chunk; `progress` is not told twice of those that have passed.
    pub(super) fn restart(&mut self) {
        (self.chunks, self.open, self.passed) = (self.run.iter(), None, 0);
    }

    pub(super) const fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Takes the next `bytes`, and compares the digest of each chunk that ends with them.
    pub(super) fn pass(&mut self, mut bytes: &[u8], lap: &mut Lap<'_>) -> Result<()> {
        loop {
            let Some(open) = self.open.as_mut() else {
                let Some(chunk) = self.chunks.next() else {
                    return Ok(());
                };
                let (hasher, missing) = (self.hasher(chunk), to_usize(chunk.bytes()));
                self.open = Some(OpenChunk { chunk, hasher, missing });
                continue;
            };
            let (now, later) = bytes.split_at(bytes.len().min(open.missing));
            if let Some(hasher) = open.hasher.as_mut() {
                hasher.update(now);
                lap.end(Stage::Hash);
            }
            open.missing -= now.len();
            bytes = later;
            if open.missing > 0 {
                return Ok(());
            }
            let OpenChunk { chunk, hasher, .. } = self.open.take().expect("it was just used");
            if let Some((number, hasher)) = chunk.digest.zip(hasher) {
                self.check(number, chunk.offset, chunk.end(), hasher.finish())?;
                lap.end(Stage::Hash);
            }
            self.passed += chunk.bytes();
            let news = self.passed.saturating_sub(self.told);
            self.told += news;
            self.progress.advance(news)?;
        }
    }

    /// What computes the digest of `chunk`, if anybody wants it.
    fn hasher(&self, chunk: &Chunk) -> Option<Hasher> {
        let checksums = || self.index.part_at(chunk.offset).checksums();
        let algorithm = || checksums().map(Checksums::algorithm).unwrap_or_default();
        chunk.digest.map(|_| Hasher::new(algorithm()))
    }

    fn check(&self, number: usize, start: u64, end: u64, actual: Digest) -> Result<()> {
        let digests = self.index.part_at(start).checksums().map(Checksums::digests);
        match digests.and_then(|digests| digests.get(number)) {
            Some(&expected) if expected != actual => {
                let (path, base) = self.source.file_at(start);
                Err(Error::new(
                    ErrorKind::Checksum,
                    format!(
                        "chunk {number} is damaged, bytes {}..{} {}: expected digest {expected}, got {actual}",
                        start - base,
                        end - base,
                        self.contents(start..end)
                    ),
                )
                .from_byte(start)
                .at(path))
            }
            Some(_) => Ok(()),
            None => {
                Err(Error::new(ErrorKind::Internal, format!("the plan names a missing digest, {number}")))
            }
        }
    }

    /// What lies in these bytes of the file, for people.
    fn contents(&self, bytes: Range<u64>) -> String {
        const SHOWN: usize = 3;
        let touches = |record: &&Record| {
            let file = self.index.file_range(record);
            file.start < bytes.end && bytes.start < file.end
        };
        let names: Vec<&str> = self.index.records().iter().filter(touches).map(Record::name).collect();
        match names.len() {
            0 => "(padding)".to_owned(),
            count if count > SHOWN => {
                format!("(of {:?} and {} more tensors)", &names[..SHOWN], count - SHOWN)
            }
            _ => format!("(of {names:?})"),
        }
    }
}
