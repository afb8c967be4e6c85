//! Verifying a whole file against its digests and its signature.

use std::{path::Path, time::Instant};

use crate::{
    environment::Environment,
    error::Result,
    format::Index,
    io::{self, Asked, Source, read::ChunkReader},
    jobs::{
        settings,
        sign::{self, PublicKey},
    },
    model::Model,
    plan::{Chunk, Readers, every_digest},
    progress::Progress,
    stats::{self, Clock},
};

/// What [`verify`] found in a sound file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes compared with digests: the payloads of the files that have some.
    pub verified_bytes: u64,
    /// The digest functions of these, if there are any that this library knows.
    pub algorithm: Option<String>,
    /// Whose signature it has.
    pub signer: Option<PublicKey>,
}

/// Checks the model at `path`, as [`Model::open`] takes it, and of each file that has digests every byte of the
/// payload, padding included. With a `key`, each file must be signed by its holder; without, a signature must be one
/// by the key that stands beside it, which proves nothing of who that is.
///
/// ```
/// # use flashpack::{ErrorKind, Progress, format::{DType, layout::{Order, TensorSpec}}, pack::Packer};
/// use flashpack::verify::verify;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.flashpack");
/// # let bias = TensorSpec { name: "bias".into(), dtype: DType::Uint8, shape: vec![3], tied_to: None };
/// # let mut file = Packer::create(&path, &[bias], Order::Given, 0, Default::default(), Progress::SILENT)?;
/// # file.write(&[7, 8, 9])?;
/// # file.finish()?;
/// assert_eq!(verify(&path, None, Progress::SILENT)?.verified_bytes, 3);
///
/// let mut bytes = std::fs::read(&path).unwrap();
/// bytes[1] ^= 1;
/// std::fs::write(&path, bytes).unwrap();
/// assert_eq!(verify(&path, None, Progress::SILENT).unwrap_err().kind(), ErrorKind::Checksum);
/// # Ok::<(), flashpack::Error>(())
/// ```
///
/// # Errors
/// As [`Model::open`]; [`ErrorKind::Checksum`](crate::ErrorKind::Checksum) names the first damaged chunk, its
/// bytes and the tensors in them; [`ErrorKind::Signature`](crate::ErrorKind::Signature).
pub fn verify(path: &Path, key: Option<&PublicKey>, progress: Progress<'_>) -> Result<Report> {
    verify_model(&Model::open(path)?, key, progress)
}

/// [`verify`] for an open model.
///
/// # Errors
/// As [`verify`].
pub fn verify_model(model: &Model, key: Option<&PublicKey>, progress: Progress<'_>) -> Result<Report> {
    let began = Instant::now();
    let Model { files, index, seals, .. } = model;
    let signer = sign::check(files, seals, key)?;
    let (files, route) = files.choose(Asked::all(Some(false)))?;
    let environment = Environment::read()?;
    let (decided, clock) = (began.elapsed(), Clock::new(environment.timeline));
    let open = model.take_opening_time() + decided;
    let readers = settings::readers(route.waits(), &environment);
    let (report, threads) = check(&files, index, readers, progress, &clock)?;
    let (bytes, from_disk) = (report.verified_bytes, route.is_from_disk());
    let traffic = files.traffic();
    stats::Report {
        bytes,
        verified_bytes: bytes,
        threads,
        from_disk,
        traffic,
        open,
        ..stats::Report::default()
    }
    .with_times(&clock, began.elapsed().saturating_sub(decided))
    .remember();
    Ok(Report { signer, ..report })
}

/// [`verify`] for a source that is open and has been parsed, but for its signature.
///
/// # Errors
/// As [`verify`].
pub fn verify_source<S: Source>(source: &S, index: &Index, progress: Progress<'_>) -> Result<Report> {
    let readers = settings::readers(source.is_far(), &Environment::read()?);
    check(source, index, readers, progress, &Clock::default()).map(|(report, _)| report)
}

/// The report, and how many threads made it at most.
fn check<S: Source>(
    source: &S,
    index: &Index,
    readers: Readers,
    progress: Progress<'_>,
    clock: &Clock,
) -> Result<(Report, usize)> {
    let payload_bytes = index.parts().iter().map(|part| part.range().end - part.range().start).sum();
    let mut tasks = every_digest(index);
    if source.is_far() {
        tasks = several_a_request(tasks);
    }
    let verified_bytes = tasks.iter().flatten().map(Chunk::bytes).sum();
    progress.start(verified_bytes);
    let chunks = ChunkReader { source, index, progress, clock };
    let readers = readers.at_most(tasks.len());
    io::read::read(&chunks, &tasks, Vec::new(), readers)?;
    let report = Report { payload_bytes, verified_bytes, algorithm: index.algorithms(), signer: None };
    Ok((report, readers.most))
}

/// The same chunks, as many in a task as a reader of an object takes at a time.
fn several_a_request(tasks: Vec<Vec<Chunk>>) -> Vec<Vec<Chunk>> {
    let mut larger: Vec<Vec<Chunk>> = Vec::new();
    for chunk in tasks.into_iter().flatten() {
        match larger.last_mut() {
            Some(task) if chunk.end() - task[0].offset <= settings::REMOTE_PART_BYTES => task.push(chunk),
            _ => larger.push(vec![chunk]),
        }
    }
    larger
}
