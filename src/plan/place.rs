//! Where each view comes to lie: the memory that is asked for, and which bytes of the file go where.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

use super::{DIRECT_ALIGN_BYTES, MERGE_GAP_BYTES, Memory, Target, select::Wanted, slices::Rows};

/// Alignment in memory of a block whose place in the file is no multiple of its element size (torch's own for the CPU).
const FALLBACK_ALIGN_BYTES: u64 = 64;

/// Bytes of the file and where they go.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) file: Range<u64>,
    pub(super) target: Option<Target>,
    /// Segments of one layer do not overlap.
    pub(super) layer: usize,
}

/// Maps what can be mapped; elements that the file leaves unaligned and slices with gaps have to be copied.
pub(super) fn lazily(views: &mut [Wanted], memory: &mut Vec<Memory>) -> Vec<Segment> {
    let mappable =
        |wanted: &Wanted| wanted.rows.is_none() && wanted.file.start.is_multiple_of(wanted.view.dtype.size());
    if views.iter().any(|wanted| !wanted.file.is_empty() && mappable(wanted)) {
        memory.push(Memory::Mapping);
        for wanted in views.iter_mut().filter(|wanted| !wanted.file.is_empty() && mappable(wanted)) {
            wanted.view.offset = wanted.file.start;
        }
    }
    in_buffers(views, memory, 1, |wanted| !mappable(wanted))
}

/// Gives each macroblock a buffer with just the runs of bytes that those views want which `selects` holds for, views
/// at multiples of `align_bytes`, and each slice with gaps a buffer of its own.
pub(super) fn in_buffers(
    views: &mut [Wanted],
    memory: &mut Vec<Memory>,
    align_bytes: u64,
    selects: impl Fn(&Wanted) -> bool,
) -> Vec<Segment> {
    let mut by_block: BTreeMap<(usize, usize), Vec<&mut Wanted>> = BTreeMap::new();
    let mut sliced = Vec::new();
    for wanted in views.iter_mut().filter(|wanted| !wanted.file.is_empty() && selects(wanted)) {
        if wanted.rows.is_some() {
            sliced.push(wanted);
        } else {
            by_block.entry((wanted.layer, wanted.block)).or_default().push(wanted);
        }
    }
    let elsewhere = sliced.iter().map(|wanted| (wanted.layer, wanted.file.start)).collect();
    let mut segments = Vec::new();
    for ((layer, _), wanted) in by_block {
        let (buffer, segmented) = in_buffer(wanted, layer, &elsewhere, memory.len(), align_bytes);
        memory.push(buffer);
        segments.extend(segmented);
    }
    let mut buffers: HashMap<usize, usize> = HashMap::new();
    for wanted in sliced {
        let rows = wanted.rows.as_ref().expect("only those with rows");
        wanted.view.memory = *buffers.entry(wanted.view.same_as).or_insert(memory.len());
        if wanted.view.memory == memory.len() {
            segments.extend(of_rows(rows, memory.len(), wanted.layer));
            memory.push(Memory::Buffer(rows.bytes()));
        }
    }
    segments
}

/// One buffer, of number `buffer`, for all of `wanted`. What begins at `elsewhere` (layer and place in the file) goes to another one.
fn in_buffer(
    mut wanted: Vec<&mut Wanted>,
    layer: usize,
    elsewhere: &BTreeSet<(usize, u64)>,
    buffer: usize,
    align_bytes: u64,
) -> (Memory, Vec<Segment>) {
    wanted.sort_unstable_by_key(|wanted| wanted.file.start);
    let mut segments = Vec::new();
    let segment = |(file, offset)| Segment { file, target: Some(Target::Bytes(buffer, offset)), layer };
    let joins = |end: u64, next: u64| {
        next <= end.saturating_add(MERGE_GAP_BYTES)
            && elsewhere.range((layer, end.min(next))..(layer, next)).next().is_none()
    };
    let mut run: Option<(Range<u64>, u64)> = None;
    for it in wanted {
        run = match run {
            Some((file, start))
                if joins(file.end, it.file.start)
                    && (start + (it.file.start - file.start)).is_multiple_of(align_bytes) =>
            {
                Some((file.start..file.end.max(it.file.end), start))
            }
            previous => {
                let cursor = previous.as_ref().map_or(0, |(file, start)| start + (file.end - file.start));
                segments.extend(previous.map(segment));
                Some((it.file.clone(), place(cursor, it.file.start, align_bytes.max(it.view.dtype.size()))))
            }
        };
        let (file, start) = run.as_ref().expect("a run was just begun or grown");
        it.view.memory = buffer;
        it.view.offset = start + (it.file.start - file.start);
    }
    let (file, start) = run.expect("a wanted block has a run");
    let room = Memory::Buffer(start + (file.end - file.start));
    segments.push(segment((file, start)));
    (room, segments)
}

/// Sends each view's bytes to a memory of its own, of the view's number. Of views that show the same bytes only the
/// first is read; the others name its memory, and nothing is asked for in their place.
pub(super) fn in_tensors(views: &mut [Wanted], memory: &mut Vec<Memory>) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(views.len());
    for (number, wanted) in views.iter_mut().enumerate() {
        let is_first = wanted.view.same_as == number;
        wanted.view.memory = wanted.view.same_as;
        memory.push(Memory::Buffer(if is_first { wanted.view.bytes() } else { 0 }));
        if !is_first || wanted.file.is_empty() {
            continue;
        }
        match &wanted.rows {
            Some(rows) => segments.extend(of_rows(rows, number, wanted.layer)),
            None => segments.push(Segment {
                file: wanted.file.clone(),
                target: Some(Target::Bytes(number, 0)),
                layer: wanted.layer,
            }),
        }
    }
    segments
}

/// The runs of `rows`, near ones joined: each segment ends before the next begins by more than the gap that is joined,
/// so there are few of them however short the runs.
fn of_rows(rows: &Rows, memory: usize, layer: usize) -> impl Iterator<Item = Segment> + use<> {
    let rows = Arc::new(rows.clone());
    let joined = rows.joined(MERGE_GAP_BYTES);
    let files: Vec<_> = joined.within(0..u64::MAX).map(|(file, _)| file).collect();
    files.into_iter().map(move |file| Segment {
        file,
        target: Some(Target::Rows(memory, Arc::clone(&rows))),
        layer,
    })
}

/// The first place at or after `cursor` for bytes that lie at `file_offset` in the file, a multiple of `align_bytes`.
fn place(cursor: u64, file_offset: u64, align_bytes: u64) -> u64 {
    if !file_offset.is_multiple_of(align_bytes) {
        return cursor.next_multiple_of(FALLBACK_ALIGN_BYTES);
    }
    let phase = file_offset % DIRECT_ALIGN_BYTES;
    let here = cursor - cursor % DIRECT_ALIGN_BYTES + phase;
    if here >= cursor { here } else { here + DIRECT_ALIGN_BYTES }
}

/// The bytes behind mapped views, to be read for their digests only.
pub(super) fn for_digests(views: &[Wanted], memory: &[Memory]) -> Vec<Segment> {
    let shows_mapping =
        |wanted: &&Wanted| !wanted.file.is_empty() && memory[wanted.view.memory] == Memory::Mapping;
    let mut shown: Vec<(Range<u64>, usize)> =
        views.iter().filter(shows_mapping).map(|wanted| (wanted.file.clone(), wanted.layer)).collect();
    shown.sort_unstable_by_key(|(file, layer)| (file.start, *layer));
    shown.dedup();
    shown.into_iter().map(|(file, layer)| Segment { file, target: None, layer }).collect()
}
