//! Verifying a whole file against its digests.

use std::path::Path;

use crate::{
    error::Result,
    format::Checksums,
    io::{self, Source},
    options::Environment,
    plan::{Chunk, Part},
    progress::Progress,
    reader::Reader,
};

/// What [`verify`] found in a sound file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes compared with digests: the whole payload, or none.
    pub verified_bytes: u64,
    /// The digest function, if the file has digests this library knows.
    pub algorithm: Option<String>,
}

/// Checks the footer of the file at `path` and, if it has digests, every byte of its payload, padding included.
///
/// # Errors
/// As [`Reader::open`]; [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) names the first damaged chunk found, its
/// bytes and the tensors in them.
pub fn verify(path: &Path, progress: Progress<'_>) -> Result<Report> {
    verify_reader(&Reader::open(path)?, progress)
}

/// [`verify`] for a file that is open.
///
/// # Errors
/// As [`verify`].
pub fn verify_reader<S: Source>(reader: &Reader<S>, progress: Progress<'_>) -> Result<Report> {
    let environment = Environment::read()?;
    let payload_bytes = reader.index().payload_bytes();
    let Some(checksums) = reader.index().checksums() else {
        return Ok(Report { payload_bytes, verified_bytes: 0, algorithm: None });
    };
    let tasks = every_chunk(payload_bytes, checksums);
    let threads = environment.read_threads.get().min(tasks.len());
    progress.start(payload_bytes);
    io::read::read(reader.source(), reader.index(), &tasks, Vec::new(), threads, progress)?;
    Ok(Report {
        payload_bytes,
        verified_bytes: payload_bytes,
        algorithm: Some(checksums.algorithm().to_owned()),
    })
}

fn every_chunk(payload_bytes: u64, checksums: &Checksums) -> Vec<Vec<Chunk>> {
    let chunk = |digest: usize| {
        let offset = digest as u64 * checksums.chunk_bytes();
        let bytes = checksums.chunk_bytes().min(payload_bytes - offset);
        vec![Chunk { offset, parts: vec![Part { bytes, target: None }], digest: Some(digest) }]
    };
    (0..checksums.digests().len()).map(chunk).collect()
}
