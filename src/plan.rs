//! What a load will do, decided before it does anything: a pure function of index, selection and settings.
//!
//! The plan says which memory is needed, where each tensor lies in it, and which chunks of the file are read into
//! it by how many threads. It prints itself.

use std::{collections::HashMap, fmt, num::NonZeroUsize, ops::Range};

use crate::{
    error::{Error, ErrorKind, Result, ensure_memory},
    format::{DType, Index, Record},
};

/// Ranges this close are read as one: two direct-I/O units cost less than another request.
const MERGE_GAP_BYTES: u64 = 8192;
/// Offsets in memory and file agree modulo this, so that direct I/O can land in place and tensors keep their alignment.
const PLACEMENT_BYTES: u64 = 4096;
/// Tensors on a device start at multiples of this, whatever their place in the file: kernels load so much at once.
const DEVICE_ALIGN_BYTES: u64 = 16;
/// Alignment in memory of a block whose place in the file is no multiple of its element size (torch's own for the CPU).
const FALLBACK_ALIGN_BYTES: u64 = 64;
/// A chunk with at most this many unwanted bytes is read whole, so that its digest can be verified.
const WHOLE_CHUNK_SURPLUS_BYTES: u64 = 64 << 10;

/// Least memory of a chunk in a plan: its own, one part's, and a task's.
const CHUNK_PLAN_BYTES: u64 = (size_of::<Chunk>() + size_of::<Part>() + size_of::<Vec<Chunk>>()) as u64;

/// Which tensors a load returns.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// The records of these names, in this order.
    Names(&'a [String]),
    /// Every record that the filter lets pass, in the index's order.
    Except(&'a Ignore<'a>),
    /// Each macroblock as one flat tensor.
    Blocks,
}

/// Names that a load leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore<'a> {
    /// Whole names.
    pub names: &'a [String],
    /// Beginnings of names.
    pub prefixes: &'a [String],
    /// Ends of names.
    pub suffixes: &'a [String],
}

impl Ignore<'_> {
    /// Whether `name` is left out.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
            || self.suffixes.iter().any(|suffix| name.ends_with(suffix.as_str()))
    }
}

/// Where the bytes come to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A private mapping of the file, paged in on first touch.
    Lazy,
    /// Memory of the process, filled before the load returns.
    Eager,
    /// A device's memory, filled through staging buffers.
    Staged,
    /// Memory that the caller's tensors have already, one for each.
    InPlace,
    /// The same on a device, filled through staging buffers.
    StagedInPlace,
}

impl Mode {
    /// Whether bytes pass through staging buffers.
    #[must_use]
    pub const fn is_staged(self) -> bool {
        matches!(self, Self::Staged | Self::StagedInPlace)
    }
}

/// How far a load checks digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    Never,
    /// Every chunk that is read (almost) whole anyway; nothing, if the file has no digests.
    Whole,
    /// Every byte that is loaded, reading more where chunks are not whole; the file must have digests.
    Everything,
}

/// The knobs of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mapping or memory.
    pub mode: Mode,
    /// Digests.
    pub verify: Verify,
    /// Most reader threads.
    pub threads: NonZeroUsize,
    /// Bytes of file a thread takes at a time.
    pub read_chunk_bytes: u64,
    /// Whether reads go past the page cache.
    pub direct: bool,
}

/// A piece of memory the plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The whole file, mapped.
    Mapping,
    /// This many bytes.
    Buffer(u64),
}

/// A tensor the load returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Number of the record (for [`Selection::Blocks`]: of the macroblock) it shows.
    pub source: usize,
    /// Type of its elements.
    pub dtype: DType,
    /// Which [`Memory`] it lies in.
    pub memory: usize,
    /// Its first byte there; a multiple of the element size.
    pub offset: u64,
    /// Sizes of its dimensions.
    pub shape: Box<[u64]>,
}

impl View {
    /// Bytes of its elements.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }
}

/// Consecutive bytes of the file, read in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Where they go.
    pub parts: Vec<Part>,
    /// The number of the digest over exactly these bytes, if they are to be verified.
    pub digest: Option<usize>,
}

impl Chunk {
    /// The byte after the last.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.parts.iter().map(|part| part.bytes).sum::<u64>()
    }
}

/// Part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Length.
    pub bytes: u64,
    /// Memory and offset there; `None`: only the digest wants them.
    pub target: Option<(usize, u64)>,
}

/// The work of one load.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// Mapping or memory.
    pub mode: Mode,
    /// The memory to provide, in order.
    pub memory: Vec<Memory>,
    /// The tensors to return, in order.
    pub views: Vec<View>,
    /// Groups of chunks in file order; each group is one thread's unit of work.
    pub tasks: Vec<Vec<Chunk>>,
    /// Reader threads.
    pub threads: usize,
    /// Whether they read past the page cache.
    pub direct: bool,
}

impl ReadPlan {
    /// Plans the load of `selection`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for a name the file does not have; [`ErrorKind::Unsupported`] if
    /// [`Verify::Everything`] meets a file without digests; [`ErrorKind::Memory`] if the plan itself is too large.
    pub fn new(index: &Index, selection: Selection<'_>, settings: Settings) -> Result<Self> {
        if settings.verify == Verify::Everything && index.checksums().is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "cannot be verified: the file holds no checksums",
            ));
        }
        let mut views = select(index, selection)?;
        let mut memory = Vec::new();
        let mut segments = match settings.mode {
            Mode::Lazy => place_lazily(index, &mut views, &mut memory),
            Mode::Eager => place_in_buffers(index, &mut views, &mut memory, 1, |_| true),
            Mode::Staged => place_in_buffers(index, &mut views, &mut memory, DEVICE_ALIGN_BYTES, |_| true),
            Mode::InPlace | Mode::StagedInPlace => place_in_tensors(&mut views, &mut memory),
        };
        if memory.is_empty() && !views.is_empty() {
            memory.push(Memory::Buffer(0));
        }
        if settings.mode == Mode::Lazy && settings.verify == Verify::Everything {
            segments.extend(mapped_segments(&views, &memory));
        }
        segments.sort_unstable_by_key(|segment| segment.file.start);
        let tasks = cut(&segments, index, settings)?;
        let threads = settings.threads.get().min(tasks.len());
        let views = views.into_iter().map(|wanted| wanted.view).collect();
        Ok(Self { mode: settings.mode, memory, views, tasks, threads, direct: settings.direct })
    }

    /// The parts of the file that mapped tensors show, sorted and disjoint.
    #[must_use]
    pub fn mapped_ranges(&self) -> Vec<Range<u64>> {
        let mapped = self.views.iter().filter(|view| self.memory[view.memory] == Memory::Mapping);
        let mut ranges: Vec<_> = mapped.map(|view| view.offset..view.offset + view.bytes()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let joined = next.start <= last.end.saturating_add(MERGE_GAP_BYTES);
            if joined {
                last.end = last.end.max(next.end);
            }
            joined
        });
        ranges
    }

    /// Bytes that are compared with digests.
    #[must_use]
    pub fn verified_bytes(&self) -> u64 {
        let chunks = self.tasks.iter().flatten().filter(|chunk| chunk.digest.is_some());
        chunks.map(|chunk| chunk.end() - chunk.offset).sum()
    }

    /// Bytes the load reads, padding and bytes for digests included.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.tasks.iter().flatten().flat_map(|chunk| &chunk.parts).map(|part| part.bytes).sum()
    }
}

impl fmt::Display for ReadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = || self.tasks.iter().flatten();
        let mode = match self.mode {
            Mode::Lazy => "map the file privately",
            Mode::Eager => "read into memory",
            Mode::Staged => "read into staging buffers and copy to the device",
            Mode::InPlace => "read into the tensors given",
            Mode::StagedInPlace => "read into staging buffers and copy to the tensors given",
        };
        let cache = if self.direct { "past" } else { "through" };
        write!(
            f,
            "{mode}; {} tensors; {} bytes in {} chunks by {} threads {cache} the page cache; {} chunks verified",
            self.views.len(),
            self.read_bytes(),
            chunks().count(),
            self.threads,
            chunks().filter(|chunk| chunk.digest.is_some()).count()
        )
    }
}

/// A view and the bytes of the file it shows.
struct Wanted {
    view: View,
    file: Range<u64>,
    block: usize,
}

/// Bytes of the file and where they go.
struct Segment {
    file: Range<u64>,
    target: Option<(usize, u64)>,
}

fn select(index: &Index, selection: Selection<'_>) -> Result<Vec<Wanted>> {
    let record = |source: usize| wanted_record(index, source, &index.records()[source]);
    match selection {
        Selection::Names(names) => names
            .iter()
            .map(|name| {
                let found = index.find(name).map(record);
                found.ok_or_else(|| Error::argument(format!("holds no tensor named {name:?}")))
            })
            .collect(),
        Selection::Except(ignore) => {
            let kept =
                index.records().iter().enumerate().filter(|(_, record)| !ignore.matches(record.name()));
            Ok(kept.map(|(source, record)| wanted_record(index, source, record)).collect())
        }
        Selection::Blocks => {
            let blocks = index.blocks().iter().enumerate();
            Ok(blocks
                .map(|(block, it)| wanted(block, block, it.dtype(), &[it.elems()], it.file_range()))
                .collect())
        }
    }
}

fn wanted_record(index: &Index, source: usize, record: &Record) -> Wanted {
    let dtype = index.blocks()[record.block()].dtype();
    wanted(source, record.block(), dtype, record.shape(), index.file_range(record))
}

/// A view that is not placed yet.
fn wanted(source: usize, block: usize, dtype: DType, shape: &[u64], file: Range<u64>) -> Wanted {
    Wanted { view: View { source, dtype, memory: 0, offset: 0, shape: shape.into() }, file, block }
}

/// Maps what can be mapped; elements that the file leaves unaligned have to be copied.
fn place_lazily(index: &Index, views: &mut [Wanted], memory: &mut Vec<Memory>) -> Vec<Segment> {
    let aligned = |block: usize| {
        let block = &index.blocks()[block];
        block.offset().is_multiple_of(block.dtype().size())
    };
    if views.iter().any(|wanted| !wanted.file.is_empty() && aligned(wanted.block)) {
        memory.push(Memory::Mapping);
        for wanted in views.iter_mut().filter(|wanted| !wanted.file.is_empty() && aligned(wanted.block)) {
            wanted.view.offset = wanted.file.start;
        }
    }
    place_in_buffers(index, views, memory, 1, |block| !aligned(block))
}

/// Gives each macroblock for which `selects` holds a buffer with just the runs of bytes that views want, views at
/// multiples of `align_bytes`.
fn place_in_buffers(
    index: &Index,
    views: &mut [Wanted],
    memory: &mut Vec<Memory>,
    align_bytes: u64,
    selects: impl Fn(usize) -> bool,
) -> Vec<Segment> {
    let mut by_block: Vec<Vec<&mut Wanted>> = index.blocks().iter().map(|_| Vec::new()).collect();
    for wanted in views.iter_mut().filter(|wanted| !wanted.file.is_empty() && selects(wanted.block)) {
        by_block[wanted.block].push(wanted);
    }
    let mut segments = Vec::new();
    for mut wanted in by_block.into_iter().filter(|wanted| !wanted.is_empty()) {
        wanted.sort_unstable_by_key(|wanted| wanted.file.start);
        let buffer = memory.len();
        let mut run: Option<(Range<u64>, u64)> = None;
        for it in wanted {
            run = match run {
                Some((file, start))
                    if it.file.start <= file.end.saturating_add(MERGE_GAP_BYTES)
                        && (start + (it.file.start - file.start)).is_multiple_of(align_bytes) =>
                {
                    Some((file.start..file.end.max(it.file.end), start))
                }
                previous => {
                    let cursor = previous.as_ref().map_or(0, |(file, start)| start + (file.end - file.start));
                    segments.extend(previous.map(|run| segment(buffer, run)));
                    Some((
                        it.file.clone(),
                        place(cursor, it.file.start, align_bytes.max(it.view.dtype.size())),
                    ))
                }
            };
            let (file, start) = run.as_ref().expect("a run was just begun or grown");
            it.view.memory = buffer;
            it.view.offset = start + (it.file.start - file.start);
        }
        let last = segment(buffer, run.expect("a wanted block has a run"));
        let (_, start) = last.target.expect("runs go to buffers");
        memory.push(Memory::Buffer(start + (last.file.end - last.file.start)));
        segments.push(last);
    }
    segments
}

/// Sends each view's bytes to a memory of its own, of the view's number. Of views that show the same bytes only the
/// first is read; the others name its memory.
fn place_in_tensors(views: &mut [Wanted], memory: &mut Vec<Memory>) -> Vec<Segment> {
    let mut first: HashMap<(u64, u64), usize> = HashMap::new();
    let mut segments = Vec::new();
    for (number, wanted) in views.iter_mut().enumerate() {
        let bytes = wanted.file.end - wanted.file.start;
        memory.push(Memory::Buffer(bytes));
        wanted.view.memory = number;
        if bytes > 0 {
            wanted.view.memory = *first.entry((wanted.file.start, bytes)).or_insert(number);
            if wanted.view.memory == number {
                segments.push(Segment { file: wanted.file.clone(), target: Some((number, 0)) });
            }
        }
    }
    segments
}

fn segment(buffer: usize, (file, start): (Range<u64>, u64)) -> Segment {
    Segment { file, target: Some((buffer, start)) }
}

/// The first place at or after `cursor` for bytes that lie at `file_offset` in the file, a multiple of `align_bytes`.
fn place(cursor: u64, file_offset: u64, align_bytes: u64) -> u64 {
    if !file_offset.is_multiple_of(align_bytes) {
        return cursor.next_multiple_of(FALLBACK_ALIGN_BYTES);
    }
    let phase = file_offset % PLACEMENT_BYTES;
    let here = cursor - cursor % PLACEMENT_BYTES + phase;
    if here >= cursor { here } else { here + PLACEMENT_BYTES }
}

/// The bytes behind mapped views, to be read for their digests only.
fn mapped_segments(views: &[Wanted], memory: &[Memory]) -> Vec<Segment> {
    let mut files: Vec<Range<u64>> = views
        .iter()
        .filter(|wanted| !wanted.file.is_empty() && memory[wanted.view.memory] == Memory::Mapping)
        .map(|wanted| wanted.file.clone())
        .collect();
    files.sort_unstable_by_key(|file| file.start);
    files.dedup();
    files.into_iter().map(|file| Segment { file, target: None }).collect()
}

/// Cuts the sorted `segments` into chunks, and groups those into tasks.
fn cut(segments: &[Segment], index: &Index, settings: Settings) -> Result<Vec<Vec<Chunk>>> {
    let surplus = match settings.verify {
        Verify::Never => None,
        Verify::Whole => Some(WHOLE_CHUNK_SURPLUS_BYTES),
        Verify::Everything => Some(u64::MAX),
    };
    let verify = surplus.zip(index.checksums());
    let step = verify.map_or(settings.read_chunk_bytes, |(_, checksums)| checksums.chunk_bytes()).max(1);
    ensure_room(segments, step)?;
    let task_bytes = settings.read_chunk_bytes.max(step);
    let mut tasks: Vec<Vec<Chunk>> = Vec::new();
    let mut task = u64::MAX;
    let mut rest = segments;
    let mut from = 0;
    while let Some(first) = rest.first() {
        let start = first.file.start.max(from);
        let window =
            start - start % step..(start - start % step).saturating_add(step).min(index.payload_end(start));
        let (pieces, used) = pieces_within(rest, from, window.end);
        rest = &rest[used..];
        from = window.end;
        let whole = verify.is_some_and(|(surplus, _)| {
            let covered: u64 = pieces.iter().map(|piece| piece.file.end - piece.file.start).sum();
            window.end - window.start - covered <= surplus
        });
        if task != window.start / task_bytes {
            task = window.start / task_bytes;
            tasks.push(Vec::new());
        }
        let chunks = tasks.last_mut().expect("a task was just begun");
        if whole {
            let digest = usize::try_from(window.start / step).ok();
            chunks.push(Chunk { offset: window.start, parts: parts_of(&window, &pieces), digest });
        } else {
            chunks.extend(pieces.iter().filter(|piece| piece.target.is_some()).map(|piece| Chunk {
                offset: piece.file.start,
                parts: parts_of(&piece.file, std::slice::from_ref(piece)),
                digest: None,
            }));
        }
    }
    tasks.retain(|chunks| !chunks.is_empty());
    Ok(tasks)
}

/// An error instead of an abort for a file of holes, whose petabytes would make a plan too large for memory.
fn ensure_room(segments: &[Segment], step: u64) -> Result<()> {
    let chunks = |segment: &Segment| (segment.file.end - segment.file.start) / step + 1;
    let least = segments.iter().map(chunks).fold(0, u64::saturating_add);
    ensure_memory(least.saturating_mul(CHUNK_PLAN_BYTES))
}

/// The pieces of `segments` from `from` up to `end`, and how many segments end there or before.
fn pieces_within(segments: &[Segment], from: u64, end: u64) -> (Vec<Segment>, usize) {
    let mut pieces = Vec::new();
    let mut used = 0;
    for segment in segments.iter().take_while(|segment| segment.file.start < end) {
        let start = segment.file.start.max(from);
        let target = segment.target.map(|(memory, offset)| (memory, offset + (start - segment.file.start)));
        pieces.push(Segment { file: start..segment.file.end.min(end), target });
        used += usize::from(segment.file.end <= end);
    }
    (pieces, used)
}

/// Covers `range` with `pieces` and what lies between them.
fn parts_of(range: &Range<u64>, pieces: &[Segment]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(pieces.len());
    let mut cursor = range.start;
    let gap = |from: u64, to: u64| (to > from).then_some(Part { bytes: to - from, target: None });
    for piece in pieces {
        parts.extend(gap(cursor, piece.file.start));
        parts.push(Part { bytes: piece.file.end - piece.file.start, target: piece.target });
        cursor = piece.file.end;
    }
    parts.extend(gap(cursor, range.end));
    parts
}
