//! What a load will do, decided before it does anything: a pure function of index, selection and settings.
//!
//! The plan says which memory is needed, where each tensor lies in it, and which chunks of the file are read into
//! it by how many threads. It prints itself.

mod chunk;
mod cut;
pub mod fit;
mod place;
pub mod ranks;
mod select;
mod slices;

use std::{fmt, ops::Range};

pub use chunk::{Chunk, ChunkPart, Move, Target};
pub(crate) use select::unknown;
pub use slices::{Cut, Rows};

use crate::{
    error::Result,
    format::{self, Checksums, DType, Index, Shape},
};

/// Ranges this close are read as one: so few bytes cost less than another request.
const MERGE_GAP_BYTES: u64 = 8192;
/// Tensors on a device start at multiples of this, whatever their place in the file: kernels load so much at once.
const DEVICE_ALIGN_BYTES: u64 = 16;
/// Offsets, lengths and addresses of direct reads are multiples of this. A file system that asks for more refuses them.
/// Memory that they are to land in lies at the same place within such a unit as its bytes in the file.
pub const DIRECT_ALIGN_BYTES: u64 = 4096;

/// Which tensors a load returns.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// The records of these names, in this order.
    Names(&'a [String]),
    /// Every record that the filter lets pass, in the index's order.
    Except(&'a Ignore<'a>),
    /// The records of these names, of some only parts.
    Slices {
        /// The names, in this order.
        names: &'a [String],
        /// What is wanted of them; without a cut, the whole tensor.
        cuts: &'a [Cut],
    },
    /// Each macroblock as one flat tensor.
    Blocks,
    /// Bytes of the payload, in file order, each range as one flat tensor of bytes.
    Payload(&'a [Range<u64>]),
}

impl Selection<'_> {
    /// Whether any tensor is selected in part.
    #[must_use]
    pub const fn is_sliced(&self) -> bool {
        matches!(self, Self::Slices { cuts, .. } if !cuts.is_empty())
    }

    /// Whether it was made to read parts of the file: nothing else is to be read then, not even for a sample.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.is_sliced() || matches!(self, Self::Payload(_))
    }

    /// Whether it takes all that `index` holds.
    #[must_use]
    pub fn is_whole(&self, index: &Index) -> bool {
        match self {
            Self::Blocks => true,
            Self::Except(ignore) => ignore.is_empty(),
            Self::Names(names) | Self::Slices { names, cuts: [] } => names.len() >= index.records().len(),
            Self::Slices { .. } | Self::Payload(_) => false,
        }
    }
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
    /// Whether no name is left out.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.names.is_empty() && self.prefixes.is_empty() && self.suffixes.is_empty()
    }

    /// Whether `name` is left out.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
            || self.suffixes.iter().any(|suffix| name.ends_with(suffix.as_str()))
    }
}

/// Where tensors go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// A private mapping of the file, paged in on first touch.
    Mapping,
    /// Host memory that the load provides.
    #[default]
    Host,
    /// A device's memory that the caller provides as the plan asks, filled through staging buffers.
    Device,
    /// Host memory of tensors that exist, one for each.
    GivenHost,
    /// A device's memory of tensors that exist, one for each, filled through staging buffers.
    GivenDevice,
}

impl Place {
    /// Whether bytes pass through staging buffers.
    #[must_use]
    pub const fn is_staged(self) -> bool {
        matches!(self, Self::Device | Self::GivenDevice)
    }

    /// Whether the memory is there already, that of one tensor after the other.
    #[must_use]
    pub const fn is_given(self) -> bool {
        matches!(self, Self::GivenHost | Self::GivenDevice)
    }
}

/// How far a load checks digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    Never,
    /// Every chunk that is read (almost) whole anyway; nothing, if the file has no digests.
    Whole,
    /// Every byte that is loaded, reading more where chunks are not whole; their files must have digests.
    Everything,
}

/// Reader threads of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readers {
    /// So many begin.
    pub first: usize,
    /// So many there are at most: more start while that makes the load faster.
    pub most: usize,
}

impl Readers {
    /// A number that stays.
    #[must_use]
    pub const fn fixed(threads: usize) -> Self {
        Self { first: threads, most: threads }
    }

    /// No more than so many.
    #[must_use]
    pub fn at_most(self, threads: usize) -> Self {
        Self { first: self.first.min(threads), most: self.most.min(threads) }
    }
}

/// The knobs of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where the tensors go.
    pub place: Place,
    /// Digests.
    pub verify: Verify,
    /// Reader threads; at least one begins.
    pub readers: Readers,
    /// Bytes of file a thread takes at a time.
    pub read_chunk_bytes: u64,
    /// Whether reads go past the page cache.
    pub direct: bool,
    /// A gap of at most so many bytes between two chunks of a task is read, too, as another request would cost more; each
    /// task is then one request. With 0 nothing is bridged.
    pub bridged_bytes: u64,
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
    /// Number of the record (for [`Selection::Blocks`]: of the macroblock, for [`Selection::Payload`]: of the range)
    /// it shows.
    pub source: usize,
    /// Type of its elements.
    pub dtype: DType,
    /// Which [`Memory`] it lies in.
    pub memory: usize,
    /// Its first byte there; a multiple of the element size.
    pub offset: u64,
    /// Sizes of its dimensions.
    pub shape: Shape,
    /// Number of the first view that shows the same bytes of the file: its own, unless weights are tied.
    pub same_as: usize,
}

impl View {
    /// Bytes of its elements.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }
}

/// The work of one load.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// Where the tensors go.
    pub place: Place,
    /// The memory to provide, in order.
    pub memory: Vec<Memory>,
    /// The tensors to return, in order.
    pub views: Vec<View>,
    /// Groups of chunks in file order (of tied tensors that are sliced differently, one slice after the other); each
    /// group is one thread's unit of work.
    pub tasks: Vec<Vec<Chunk>>,
    /// Reader threads; none if there is nothing to read.
    pub readers: Readers,
    /// Whether they read past the page cache.
    pub direct: bool,
}

impl ReadPlan {
    /// Plans the load of `selection`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name, a part of a tensor or bytes that the file does
    /// not have; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if [`Verify::Everything`] meets bytes of a
    /// file without digests; [`ErrorKind::Memory`](crate::ErrorKind::Memory) if the plan itself is too large.
    pub fn new(index: &Index, selection: Selection<'_>, settings: Settings) -> Result<Self> {
        let mut views = select::select(index, selection)?;
        let mut memory = Vec::new();
        let mut segments = match settings.place {
            Place::Mapping => place::lazily(&mut views, &mut memory),
            Place::Host => place::in_buffers(&mut views, &mut memory, 1, |_| true),
            Place::Device => place::in_buffers(&mut views, &mut memory, DEVICE_ALIGN_BYTES, |_| true),
            Place::GivenHost | Place::GivenDevice => place::in_tensors(&mut views, &mut memory),
        };
        if memory.is_empty() && !views.is_empty() {
            memory.push(Memory::Buffer(0));
        }
        if settings.place == Place::Mapping && settings.verify == Verify::Everything {
            segments.extend(place::for_digests(&views, &memory));
        }
        segments.sort_unstable_by_key(|segment| (segment.layer, segment.file.start));
        let layers = segments.chunk_by(|one, other| one.layer == other.layer);
        let cut = |layer| cut::cut(layer, index, settings, selection);
        let mut tasks =
            layers.map(cut).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>();
        if settings.bridged_bytes > 0 {
            tasks = cut::bridge(tasks, settings.bridged_bytes);
        }
        let readers = settings.readers.at_most(tasks.len());
        let views = views.into_iter().map(|wanted| wanted.view).collect();
        Ok(Self { place: settings.place, memory, views, tasks, readers, direct: settings.direct })
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

    /// The parts of the file that are read, in the order of the chunks.
    #[must_use]
    pub fn read_ranges(&self) -> Vec<Range<u64>> {
        self.tasks.iter().flatten().map(|chunk| chunk.offset..chunk.end()).collect()
    }

    /// Bytes that are compared with digests.
    #[must_use]
    pub fn verified_bytes(&self) -> u64 {
        let chunks = self.tasks.iter().flatten().filter(|chunk| chunk.digest.is_some());
        chunks.map(Chunk::bytes).sum()
    }

    /// Bytes the load reads, padding and bytes for digests included.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.tasks.iter().flatten().flat_map(|chunk| &chunk.parts).map(|part| part.bytes).sum()
    }
}

/// All bytes that have a digest, a task for each.
#[must_use]
pub fn every_digest(index: &Index) -> Vec<Vec<Chunk>> {
    let of_part = |part: &format::Part| {
        let Range { start, end } = *part.range();
        let chunk_bytes = part.checksums().map_or(1, Checksums::chunk_bytes);
        let count = part.checksums().map_or(0, |checksums| checksums.digests().len());
        (0..count).map(move |digest| {
            let offset = start + digest as u64 * chunk_bytes;
            let bytes = chunk_bytes.min(end - offset);
            vec![Chunk { offset, parts: vec![ChunkPart { bytes, target: None }], digest: Some(digest) }]
        })
    };
    index.parts().iter().flat_map(of_part).collect()
}

impl fmt::Display for ReadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = || self.tasks.iter().flatten();
        let way = match self.place {
            Place::Mapping => "map the file privately",
            Place::Host => "read into memory",
            Place::Device => "read into staging buffers and copy to the device",
            Place::GivenHost => "read into the tensors given",
            Place::GivenDevice => "read into staging buffers and copy to the tensors given",
        };
        let cache = if self.direct { "past" } else { "through" };
        write!(
            f,
            "{way}; {} tensors; {} bytes in {} chunks by {} threads {cache} the page cache; {} chunks verified",
            self.views.len(),
            self.read_bytes(),
            chunks().count(),
            self.readers.first,
            chunks().filter(|chunk| chunk.digest.is_some()).count()
        )
    }
}
