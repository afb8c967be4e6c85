//! Verifying a whole file against its digests and its signature.

use std::{path::Path, time::Instant};

use crate::{
    error::{Error, ErrorKind, Result},
    format::{Checksums, Index, checksum::Algorithm},
    io::{self, Source, read::ChunkReader},
    model::Model,
    options::Environment,
    plan::{Chunk, Part},
    progress::Progress,
    sign::{self, PublicKey},
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
    /// Whose signature it has.
    pub signer: Option<PublicKey>,
}

/// Checks the model at `path`, as [`Model::open`] takes it, and, if its files have digests, every byte of their
/// payloads, padding included. With a `key`, each file must be signed by its holder; without, a signature must be one
/// by the key that stands beside it, which proves nothing of who that is.
///
/// # Errors
/// As [`Model::open`]; [`ErrorKind::Checksum`] names the first damaged chunk, its
/// bytes and the tensors in them; [`ErrorKind::Signature`].
pub fn verify(path: &Path, key: Option<&PublicKey>, progress: Progress<'_>) -> Result<Report> {
    let began = Instant::now();
    let Model { files, index, seals, .. } = Model::open(path)?;
    let signer = sign::check(&files, &seals, key)?;
    if key.is_some() && index.checksums().is_none() {
        let what = "holds files whose digests are of chunks of several sizes: verify each file by itself";
        return Err(Error::new(ErrorKind::Signature, what).at(path));
    }
    let (files, route) = files.choose(Some(false));
    let (open, clock) = (began.elapsed(), Clock::default());
    let (report, threads) = check(&files, &index, progress, &clock)?;
    let (bytes, from_disk) = (report.verified_bytes, route.is_from_disk());
    stats::Report { bytes, verified_bytes: bytes, threads, from_disk, open, ..stats::Report::default() }
        .with_times(&clock, began.elapsed().saturating_sub(open))
        .remember();
    Ok(Report { signer, ..report })
}

/// [`verify`] for a source that is open and has been parsed, but for its signature.
///
/// # Errors
/// As [`verify`].
pub fn verify_source<S: Source>(source: &S, index: &Index, progress: Progress<'_>) -> Result<Report> {
    check(source, index, progress, &Clock::default()).map(|(report, _)| report)
}

/// The report, and how many threads made it.
fn check<S: Source>(
    source: &S,
    index: &Index,
    progress: Progress<'_>,
    clock: &Clock,
) -> Result<(Report, usize)> {
    let environment = Environment::read()?;
    let payload_bytes = index.parts().iter().map(|part| part.end - part.start).sum();
    let Some(checksums) = index.checksums() else {
        return Ok((Report { payload_bytes, verified_bytes: 0, algorithm: None, signer: None }, 0));
    };
    let tasks = every_chunk(index, checksums);
    let threads = environment.read_threads.get().min(tasks.len());
    progress.start(payload_bytes);
    let chunks = ChunkReader { source, index, progress, clock };
    io::read::read(&chunks, &tasks, Vec::new(), threads)?;
    let algorithm = Some(checksums.algorithm());
    Ok((Report { payload_bytes, verified_bytes: payload_bytes, algorithm, signer: None }, threads))
}

/// The whole payload, a task for each digest.
pub(crate) fn every_chunk(index: &Index, checksums: &Checksums) -> Vec<Vec<Chunk>> {
    let chunk = |digest: usize| {
        let offset = digest as u64 * checksums.chunk_bytes();
        let bytes = checksums.chunk_bytes().min(index.payload_end(offset) - offset);
        vec![Chunk { offset, parts: vec![Part { bytes, target: None }], digest: Some(digest) }]
    };
    (0..checksums.digests().len()).map(chunk).collect()
}
