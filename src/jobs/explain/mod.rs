//! What a load would do and how long it must take at least, without loading anything.

pub mod measure;
mod text;

use std::{collections::BTreeSet, path::Path};

use serde::Serialize;

use measure::Rate;

use crate::{
    device::{pool, transfer},
    environment::Environment,
    error::Result,
    format::{Index, Part},
    io::{Asked, Source as _, prefetch, residency::Residency},
    jobs::load::{self, Options, Prepared},
    model::Model,
    os,
    plan::{Chunk, Memory, Place, ReadPlan, Selection, View},
    remote::Traffic,
    stats::Limit,
};

/// A load that has been planned and not run, which it prints for people. Sizes are in bytes, times in seconds, rates in
/// bytes per second.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// What messages call the model.
    pub path: String,
    /// Where the tensors would go.
    pub device: String,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bytes of all macroblocks, and between them.
    pub payload_bytes: u64,
    /// Bytes that the files store the payload in.
    pub stored_bytes: u64,
    /// By which codecs; none if it is stored as it is.
    pub codecs: Vec<&'static str>,
    /// The part of the files in the page cache, if that can be told.
    pub cached_part: Option<f64>,
    /// Whether reads go past the page cache.
    pub direct: bool,
    /// Why they do, or do not.
    pub why: &'static str,
    /// The digest functions.
    pub algorithm: Option<String>,
    /// What the load does with the files: `map`, `read` or `stage`.
    pub mode: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of the tensors.
    pub tensor_bytes: u64,
    /// Bytes of memory for the tensors.
    pub memory_bytes: u64,
    /// Bytes of the files that tensors show.
    pub mapped_bytes: u64,
    /// Bytes that are read.
    pub read_bytes: u64,
    /// What requests to a store the sample took; none of files.
    pub traffic: Option<Traffic>,
    /// What is peculiar about reading from the store, if anything is.
    pub note: Option<String>,
    /// Reader threads that begin.
    pub threads: usize,
    /// So many there are at most: more start while that makes the load faster.
    pub max_threads: usize,
    /// The most that a thread takes at a time.
    pub task_bytes: u64,
    /// Number of chunks that are read.
    pub chunks: usize,
    /// Bytes of the largest.
    pub chunk_bytes: u64,
    /// Those that are compared with digests.
    pub verified_chunks: usize,
    /// Their bytes.
    pub verified_bytes: u64,
    /// Number of staging buffers.
    pub staging_buffers: usize,
    /// Bytes of all of them.
    pub staging_bytes: usize,
    /// Whether a mapping is read in the background, and why; none for other loads.
    pub read_ahead: Option<(bool, &'static str)>,
    /// What was just measured, and how long the load takes at least.
    #[serde(flatten)]
    pub bound: Bound,
}

/// The time of each stage at a rate that was measured just now, and the least that a load takes.
#[derive(Clone, Debug, Serialize)]
pub struct Bound {
    /// Bytes of the files that were read to measure.
    pub sample_bytes: u64,
    /// Of reading the files.
    pub source_rate: Option<f64>,
    /// Of computing digests.
    pub checksum_rate: Option<f64>,
    /// Of copying in memory.
    pub copy_rate: f64,
    /// Of reading the files.
    pub source_seconds: f64,
    /// Of computing digests.
    pub checksum_seconds: f64,
    /// Of all.
    pub seconds: f64,
    /// What takes the longest; none for a load that reads nothing.
    pub limit: Option<&'static str>,
}

/// What a load of `selection` from `path` to `device` would do, and how long that takes at least.
///
/// Reads up to 64 MiB of the file for a sample, the way the load would.
///
/// # Errors
/// Those of [`Model::open`], of [`load::prepare`] and of reading the sample.
pub fn explain(path: &Path, device: &str, selection: Selection<'_>, options: Options) -> Result<Explanation> {
    let mut prepared = load::prepare(&Model::open(path)?, selection, options)?;
    if prepared.route.residency.is_none() {
        prepared.route.residency = prepared.files.residency();
    }
    let (plan, Prepared { files, route, index, .. }) = (prepared.plan(), &prepared);
    let chunks = || plan.tasks.iter().flatten();
    let (staging_buffers, staging_bytes) = staging(plan, pool::limit(Environment::read()?.pinned_bytes));
    Ok(Explanation {
        path: files.path().display().to_string(),
        device: device.to_owned(),
        file_bytes: files.file_bytes(),
        payload_bytes: index.payload_bytes(),
        stored_bytes: index.parts().iter().map(Part::stored_bytes).sum(),
        codecs: codecs(index),
        cached_part: route.residency.map(Residency::part),
        direct: route.direct,
        why: route.why.text(),
        algorithm: index.algorithms(),
        mode: mode(plan.place),
        tensors: plan.views.len(),
        tensor_bytes: plan.views.iter().map(View::bytes).sum::<u64>(),
        memory_bytes: memory_bytes(plan),
        mapped_bytes: mapped_bytes(plan),
        read_bytes: plan.read_bytes(),
        threads: plan.readers.first,
        max_threads: plan.readers.most,
        task_bytes: plan.tasks.iter().map(|task| task_bytes(task)).max().unwrap_or(0),
        chunks: chunks().count(),
        chunk_bytes: chunks().map(|chunk| chunk.end() - chunk.offset).max().unwrap_or(0),
        verified_chunks: chunks().filter(|chunk| chunk.digest.is_some()).count(),
        verified_bytes: plan.verified_bytes(),
        staging_buffers,
        staging_bytes,
        read_ahead: read_ahead(&prepared),
        traffic: files.traffic(),
        note: files.note(),
        bound: bound(&prepared)?,
    })
}

fn codecs(index: &Index) -> Vec<&'static str> {
    let encodings = index.parts().iter().filter_map(Part::encoding);
    let names: BTreeSet<_> = encodings.flat_map(|encoding| encoding.codecs().into_keys()).collect();
    names.into_iter().collect()
}

/// The threads that read from the page cache are busy reading, so digests add to their time; disks and stores work on while
/// digests are computed. What the device and its link take is not known here.
fn bound(prepared: &Prepared) -> Result<Bound> {
    let plan = prepared.plan();
    let (threads, verified) = (plan.readers.first.max(1), plan.verified_bytes());
    let (from_disk, is_far) = (prepared.route.is_from_disk(), prepared.files.is_far());
    let copy = measure::copying(threads.min(os::parallelism().get()))?;
    // Of several algorithms the first: files of one model seldom differ.
    let digests = prepared.index.parts().iter().find_map(Part::checksums).filter(|_| verified > 0);
    let hash = digests.map(|digests| measure::hashing(digests.algorithm(), threads)).transpose()?;
    let (source, source_seconds) = reading(prepared)?;
    let hash_seconds = hash.map_or(0.0, |rate| rate.seconds(verified));
    let overlaps = from_disk || is_far;
    let seconds = if overlaps { source_seconds.max(hash_seconds) } else { source_seconds + hash_seconds };
    let limit = match (source, from_disk) {
        (None, _) => None,
        _ if hash_seconds > source_seconds => Some(Limit::Checksums),
        _ if is_far => Some(Limit::Network),
        (_, true) => Some(Limit::Disk),
        (_, false) => Some(Limit::PageCache),
    };
    Ok(Bound {
        sample_bytes: source.map_or(0, |rate| rate.bytes),
        source_rate: source.map(Rate::per_second),
        checksum_rate: hash.map(Rate::per_second),
        copy_rate: copy.per_second(),
        source_seconds,
        checksum_seconds: hash_seconds,
        seconds,
        limit: limit.map(Limit::name),
    })
}

/// Readers that keep a disk as busy as reading ahead of a mapping does.
const READ_AHEAD_DEPTH: usize = 16;

/// The rate at which the source gives bytes now, and the seconds it takes for all; none for a load that reads nothing.
///
/// What a mapping shows and the page cache lacks will be read from the disk: that is what is timed then.
fn reading(prepared: &Prepared) -> Result<(Option<Rate>, f64)> {
    let plan = prepared.plan();
    let payload_bytes = prepared.index.payload_bytes();
    let (bytes, threads, reused) = (plan.read_bytes(), plan.readers.first, plan.place.is_staged());
    if plan.place == Place::Mapping && prepared.route.is_from_disk() {
        let absent_part = 1.0 - prepared.route.residency.map_or(0.0, Residency::part);
        let mapped_bytes = mapped_bytes(plan);
        let (disk, _) = prepared.files.choose(Asked::all(Some(true)))?;
        let rate = measure::reading(&disk, payload_bytes, READ_AHEAD_DEPTH, true)?;
        return Ok((Some(rate), rate.seconds(bytes.max(mapped_bytes)) * absent_part));
    }
    if bytes == 0 {
        return Ok((None, 0.0));
    }
    let rate = measure::reading(&prepared.files, payload_bytes, threads, reused)?;
    Ok((Some(rate), rate.seconds(bytes)))
}

const fn mode(place: Place) -> &'static str {
    match place {
        Place::Mapping => "map",
        Place::Host | Place::GivenHost => "read",
        Place::Device | Place::GivenDevice => "stage",
    }
}

fn memory_bytes(plan: &ReadPlan) -> u64 {
    let bytes = |memory: &Memory| match *memory {
        Memory::Buffer(bytes) => bytes,
        Memory::Mapping => 0,
    };
    plan.memory.iter().map(bytes).sum()
}

fn mapped_bytes(plan: &ReadPlan) -> u64 {
    plan.mapped_ranges().iter().map(|range| range.end - range.start).sum()
}

fn task_bytes(task: &[Chunk]) -> u64 {
    task.iter().map(|chunk| chunk.end() - chunk.offset).sum()
}

/// How many staging buffers there will be at most, of `limit` bytes, and their bytes together.
fn staging(plan: &ReadPlan, limit: usize) -> (usize, usize) {
    if !plan.place.is_staged() || plan.tasks.is_empty() {
        return (0, 0);
    }
    let bytes = transfer::staging_bytes(&plan.tasks).max(1);
    let buffers = (plan.readers.most * transfer::DEPTH).min(plan.tasks.len()).min((limit / bytes).max(1));
    (buffers, buffers * bytes)
}

/// Whether a mapping is read ahead, and why; `None` for other loads.
fn read_ahead(prepared: &Prepared) -> Option<(bool, &'static str)> {
    let ranges = prepared.plan().mapped_ranges();
    if ranges.is_empty() {
        return None;
    }
    if !prepared.reads_ahead {
        return Some((false, "eager=False asks for nothing before it is touched"));
    }
    let verdict = prefetch::judge(&prepared.files, &ranges);
    Some((verdict.reads(), verdict.text()))
}
