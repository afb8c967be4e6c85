//! Cutting what is to be read into chunks, and those into tasks.

use std::ops::Range;

use super::{
    Chunk, ChunkPart, DIRECT_ALIGN_BYTES, MERGE_GAP_BYTES, Selection, Settings, Target, Verify,
    place::Segment,
};
use crate::{
    error::{Error, ErrorKind, Result, ensure_memory},
    format::{Checksums, Index},
};

/// A chunk with at most this many unwanted bytes is read whole, so that its digest can be verified.
const WHOLE_CHUNK_SURPLUS_BYTES: u64 = 64 << 10;
/// The same for slices: no more than a unit of direct reads, which is read at the ends of a run in any case.
const SLICED_SURPLUS_BYTES: u64 = DIRECT_ALIGN_BYTES;

/// Least memory of a chunk in a plan: its own, one part's, and a task's.
const CHUNK_PLAN_BYTES: u64 = (size_of::<Chunk>() + size_of::<ChunkPart>() + size_of::<Vec<Chunk>>()) as u64;

/// Cuts the sorted `segments` of `selection`, which do not overlap, into chunks, and groups those into tasks.
pub(super) fn cut(
    segments: &[Segment],
    index: &Index,
    settings: Settings,
    selection: Selection<'_>,
) -> Result<Vec<Vec<Chunk>>> {
    let surplus = surplus(settings.verify, index, selection);
    let gap_bytes = if selection.is_partial() { 0 } else { MERGE_GAP_BYTES };
    ensure_room(segments, least_step(index, surplus, settings))?;
    let mut tasks: Vec<Vec<Chunk>> = Vec::new();
    let mut task = None;
    let mut rest = segments;
    let mut from = 0;
    while let Some(first) = rest.first() {
        let window = Window::around(first.file.start.max(from), index, surplus, settings)?;
        let range = &window.range;
        let (pieces, used) = pieces_within(rest, from, range.end);
        rest = &rest[used..];
        from = range.end;
        if task.replace(window.task) != Some(window.task) {
            tasks.push(Vec::new());
        }
        let chunks = tasks.last_mut().expect("a task was just begun");
        let covered: u64 = pieces.iter().map(|piece| piece.file.end - piece.file.start).sum();
        let left_out = range.end - range.start - covered;
        if window.digest.is_some() && surplus.is_some_and(|surplus| left_out <= surplus) {
            let parts = parts_of(range, &pieces);
            chunks.push(Chunk { offset: range.start, parts, digest: window.digest });
        } else {
            chunks.extend(unverified(range, &pieces, settings.direct, gap_bytes));
        }
    }
    tasks.retain(|chunks| !chunks.is_empty());
    Ok(tasks)
}

/// How many bytes that nobody wants are read with a chunk so that its digest can be verified; none if it is not to be.
fn surplus(verify: Verify, index: &Index, selection: Selection<'_>) -> Option<u64> {
    match verify {
        Verify::Never => None,
        Verify::Whole if selection.is_whole(index) => Some(u64::MAX), // what nobody wants is padding
        Verify::Whole if selection.is_sliced() => Some(SLICED_SURPLUS_BYTES),
        Verify::Whole => Some(WHOLE_CHUNK_SURPLUS_BYTES),
        Verify::Everything => Some(u64::MAX),
    }
}

/// The same chunks, a task for each run of them: gaps of at most `gap_bytes` between those of one task are read, too.
pub(super) fn bridge(tasks: Vec<Vec<Chunk>>, gap_bytes: u64) -> Vec<Vec<Chunk>> {
    let mut runs: Vec<Vec<Chunk>> = Vec::with_capacity(tasks.len());
    for task in tasks {
        let mut end = None;
        for chunk in task {
            let gap = end.and_then(|end| chunk.offset.checked_sub(end)).filter(|&gap| gap <= gap_bytes);
            end = Some(chunk.end());
            match (gap, runs.last_mut()) {
                (Some(bytes), Some(run)) => {
                    let parts = vec![ChunkPart { bytes, target: None }];
                    run.extend((bytes > 0).then(|| Chunk {
                        offset: chunk.offset - bytes,
                        parts,
                        digest: None,
                    }));
                    run.push(chunk);
                }
                _ => runs.push(vec![chunk]),
            }
        }
    }
    runs
}

/// Bytes of one part of the index that become a chunk at most.
struct Window {
    range: Range<u64>,
    /// The number of the digest over exactly these bytes, if there is one and anybody wants it.
    digest: Option<usize>,
    /// What windows of one task have in common.
    task: (u64, u64),
}

impl Window {
    /// The window that the byte at `start` lies in. A gap between two parts is a window of its own.
    fn around(start: u64, index: &Index, surplus: Option<u64>, settings: Settings) -> Result<Self> {
        let part = index.part_at(start);
        let Range { start: base, end } = *part.range();
        if start < base {
            return Ok(Self { range: start..base, digest: None, task: (start, 0) });
        }
        let checksums = surplus.and(part.checksums());
        if settings.verify == Verify::Everything && checksums.is_none() {
            return Err(no_checksums(index, start));
        }
        let step = checksums.map_or(settings.read_chunk_bytes, Checksums::chunk_bytes).max(1);
        let number = (start - base) / step;
        let first = base + number * step;
        Ok(Self {
            range: first..first.saturating_add(step).min(end),
            digest: checksums.and(usize::try_from(number).ok()),
            task: (base, (first - base) / settings.read_chunk_bytes.max(step)),
        })
    }
}

/// The least bytes that a window has, but for the last one of a part.
fn least_step(index: &Index, surplus: Option<u64>, settings: Settings) -> u64 {
    let checksums = index.parts().iter().filter_map(|part| surplus.and(part.checksums()));
    checksums.map(Checksums::chunk_bytes).fold(settings.read_chunk_bytes, u64::min).max(1)
}

fn no_checksums(index: &Index, offset: u64) -> Error {
    let file = index.parts().partition_point(|part| part.range().end <= offset) + 1;
    let what = match index.parts().len() {
        1 => "the file holds no checksums".to_owned(),
        count => format!("file {file} of {count} holds no checksums"),
    };
    let what = format!("cannot be verified: {what}; `flashpack convert` writes them");
    Error::new(ErrorKind::Unsupported, what)
}

/// An error instead of an abort for a file of holes, whose petabytes would make a plan too large for memory.
fn ensure_room(segments: &[Segment], step: u64) -> Result<()> {
    let chunks = |segment: &Segment| (segment.file.end - segment.file.start) / step + 1;
    let least = segments.iter().map(chunks).fold(0, u64::saturating_add);
    ensure_memory(least.saturating_mul(CHUNK_PLAN_BYTES))
}

/// Chunks of those `pieces` of `window` that memory wants; pieces no further apart than `gap_bytes` are read together.
fn unverified(window: &Range<u64>, pieces: &[Segment], direct: bool, gap_bytes: u64) -> Vec<Chunk> {
    let whole = |piece: &Segment| matches!(piece.target, Some(Target::Bytes(..)));
    let near = |one: &Segment, other: &Segment| {
        whole(one) && whole(other) && other.file.start - one.file.end <= gap_bytes
    };
    let mut chunks = Vec::new();
    let (mut low, mut used) = (window.start, 0);
    for group in pieces.chunk_by(near) {
        used += group.len();
        let high = pieces.get(used).map_or(window.end, |after| after.file.start);
        chunks.extend(chunk_of(group, low..high, direct));
        low = group[group.len() - 1].file.end;
    }
    chunks
}

/// The chunk of `group`, pieces of whole tensors or a single one; it may reach as far as `room`.
fn chunk_of(group: &[Segment], room: Range<u64>, direct: bool) -> Option<Chunk> {
    let (first, last) = (group.first()?, group.last()?);
    let mut file = first.file.start..last.file.end;
    let parts = match &first.target {
        None => return None,
        Some(Target::Bytes(..)) => parts_of(&file, group),
        Some(Target::Rows(..)) => {
            // Runs are gathered from a buffer, which may as well hold whole units of direct I/O. The end of one piece
            // and the beginning of the next may share a unit: the first takes it up to where it ends itself.
            if direct {
                file.start = (file.start - file.start % DIRECT_ALIGN_BYTES).max(room.start);
                let end = file.end.next_multiple_of(DIRECT_ALIGN_BYTES);
                file.end = if end <= room.end { end } else { file.end };
            }
            vec![ChunkPart { bytes: file.end - file.start, target: first.target.clone() }]
        }
    };
    Some(Chunk { offset: file.start, parts, digest: None })
}

/// The pieces of `segments` from `from` up to `end`, and how many segments end there or before.
fn pieces_within(segments: &[Segment], from: u64, end: u64) -> (Vec<Segment>, usize) {
    let mut pieces = Vec::new();
    let mut used = 0;
    for segment in segments.iter().take_while(|segment| segment.file.start < end) {
        let start = segment.file.start.max(from);
        let target = segment.target.clone().map(|target| target.advanced(start - segment.file.start));
        pieces.push(Segment { file: start..segment.file.end.min(end), target, layer: segment.layer });
        used += usize::from(segment.file.end <= end);
    }
    (pieces, used)
}

/// Covers `range` with `pieces` and what lies between them.
fn parts_of(range: &Range<u64>, pieces: &[Segment]) -> Vec<ChunkPart> {
    let mut parts = Vec::with_capacity(pieces.len());
    let mut cursor = range.start;
    let gap = |from: u64, to: u64| (to > from).then_some(ChunkPart { bytes: to - from, target: None });
    for piece in pieces {
        parts.extend(gap(cursor, piece.file.start));
        parts.push(ChunkPart { bytes: piece.file.end - piece.file.start, target: piece.target.clone() });
        cursor = piece.file.end;
    }
    parts.extend(gap(cursor, range.end));
    parts
}
