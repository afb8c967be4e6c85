//! Verifying a whole file against its digests.

use std::{path::Path, time::Instant};

use crate::{
    error::Result,
    format::{Checksums, checksum::Algorithm},
    io::{self, Route, Source, read::ChunkReader},
    options::Environment,
    plan::{Chunk, Part},
    progress::Progress,
    reader::Reader,
    stats::{self, Clock},
};

/// What [`verify`] found in a sound file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes compared with digests: the whole payload, or none.
    pub verified_bytes: u64,
    /// The digest function, if the file has digests this library knows.
    pub algorithm: Option<Algorithm>,
}

/// Checks the footer of the file at `path` and, if it has digests, every byte of its payload, padding included.
///
/// # Errors
/// As [`Reader::open`]; [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) names the first damaged chunk, its
/// bytes and the tensors in them.
pub fn verify(path: &Path, progress: Progress<'_>) -> Result<Report> {
    let began = Instant::now();
    let reader = Reader::open(path)?;
    let from_disk = Route::choose(reader.source(), Some(false)).is_from_disk();
    let (open, clock) = (began.elapsed(), Clock::default());
    let (report, threads) = check(&reader, progress, &clock)?;
    let bytes = report.verified_bytes;
    stats::Report { bytes, verified_bytes: bytes, threads, from_disk, open, ..stats::Report::default() }
        .with_times(&clock, began.elapsed().saturating_sub(open))
        .remember();
    Ok(report)
}

/// [`verify`] for a file that is open.
///
/// # Errors
/// As [`verify`].
pub fn verify_reader<S: Source>(reader: &Reader<S>, progress: Progress<'_>) -> Result<Report> {
    check(reader, progress, &Clock::default()).map(|(report, _)| report)
}

/// The report, and how many threads made it.
fn check<S: Source>(reader: &Reader<S>, progress: Progress<'_>, clock: &Clock) -> Result<(Report, usize)> {
    let environment = Environment::read()?;
    let payload_bytes = reader.index().payload_bytes();
    let Some(checksums) = reader.index().checksums() else {
        return Ok((Report { payload_bytes, verified_bytes: 0, algorithm: None }, 0));
    };
    let tasks = every_chunk(payload_bytes, checksums);
    let threads = environment.read_threads.get().min(tasks.len());
    progress.start(payload_bytes);
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock };
    io::read::read(&chunks, &tasks, Vec::new(), threads)?;
    let algorithm = Some(checksums.algorithm());
    Ok((Report { payload_bytes, verified_bytes: payload_bytes, algorithm }, threads))
}

fn every_chunk(payload_bytes: u64, checksums: &Checksums) -> Vec<Vec<Chunk>> {
    let chunk = |digest: usize| {
        let offset = digest as u64 * checksums.chunk_bytes();
        let bytes = checksums.chunk_bytes().min(payload_bytes - offset);
        vec![Chunk { offset, parts: vec![Part { bytes, target: None }], digest: Some(digest) }]
    };
    (0..checksums.digests().len()).map(chunk).collect()
}
