//! Loading tensors into host memory: open, plan, provide memory, read.

use std::path::Path;

use crate::{
    device::HostBuffer,
    error::{Error, ErrorKind, Result},
    io::{self, FileSource, Mapping, Source},
    options::Environment,
    plan::{Memory, Mode, ReadPlan, Selection, Settings, Verify, View},
    progress::Progress,
    reader::Reader,
};

/// What a caller may ask of a load; `None` leaves it to the environment and the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Read every byte before returning, instead of mapping the file. Default: `FLASHPACK_CPU_PARALLEL_READ`.
    pub eager: Option<bool>,
    /// Verify digests. Default: in eager loads, of files that have digests.
    pub verify: Option<bool>,
}

/// Memory with tensors in it.
#[derive(Debug)]
pub enum Block {
    /// A private mapping of the whole file.
    Mapped(Mapping),
    /// Memory of the process.
    Buffer(HostBuffer),
}

impl Block {
    /// Address of the first byte, writable.
    pub fn data(&mut self) -> *mut u8 {
        match self {
            Self::Mapped(mapping) => mapping.data(),
            Self::Buffer(buffer) => buffer.data(),
        }
    }

    /// Length in bytes, as a tensor's size.
    #[must_use]
    pub fn bytes(&self) -> i64 {
        let bytes = match self {
            Self::Mapped(mapping) => mapping.len(),
            Self::Buffer(buffer) => buffer.len(),
        };
        // No memory exceeds isize::MAX bytes.
        bytes.cast_signed() as i64
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(_) => &mut [],
            Self::Buffer(buffer) => buffer.as_mut_slice(),
        }
    }
}

/// A finished load.
#[derive(Debug)]
pub struct Loaded {
    /// The memory, in the plan's order.
    pub blocks: Vec<Block>,
    /// The tensors in it.
    pub views: Vec<View>,
    /// Their names; of macroblocks, their numbers.
    pub names: Vec<String>,
}

impl Loaded {
    /// A copy of the elements of tensor `number`, little endian, row-major.
    ///
    /// # Panics
    /// If there is no such tensor.
    #[must_use]
    pub fn to_bytes(&mut self, number: usize) -> Vec<u8> {
        let view = &self.views[number];
        let elems: u64 = view.shape.iter().product();
        let bytes = usize::try_from(elems * view.dtype.size()).expect("a loaded tensor fits in memory");
        let offset = usize::try_from(view.offset).expect("a loaded tensor fits in memory");
        let data = self.blocks[view.memory].data();
        // SAFETY: the plan placed the view within its block, which lives as long as `self` and which nothing
        // else writes to while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(data.add(offset), bytes) }.to_vec()
    }
}

/// Loads `selection` of the file at `path` into host memory.
///
/// # Errors
/// Those of [`Reader::open`] and [`ReadPlan::new`]; [`ErrorKind::Memory`] if the memory cannot be had;
/// [`ErrorKind::Io`] and [`ErrorKind::Checksum`] from reading.
pub fn load(
    path: &Path,
    selection: Selection<'_>,
    options: Options,
    progress: Progress<'_>,
) -> Result<Loaded> {
    let environment = Environment::read()?;
    let reader = Reader::open(path)?;
    let plan = plan(&reader, selection, options, environment).map_err(|error| error.at(path))?;
    let mut blocks = provide(&plan, reader.source()).map_err(|error| error.at(path))?;
    progress.start(plan.read_bytes());
    let memory = blocks.iter_mut().map(Block::as_mut_slice).collect();
    io::read::read(reader.source(), reader.index(), &plan.tasks, memory, plan.threads, progress)?;
    let name = |view: &View| match selection {
        Selection::Blocks => view.source.to_string(),
        Selection::Names(_) | Selection::Except(_) => reader.index().records()[view.source].name().to_owned(),
    };
    Ok(Loaded { names: plan.views.iter().map(name).collect(), blocks, views: plan.views })
}

/// Decides how `selection` of an open file is loaded.
///
/// # Errors
/// Those of [`ReadPlan::new`].
pub fn plan<S: Source>(
    reader: &Reader<S>,
    selection: Selection<'_>,
    options: Options,
    environment: Environment,
) -> Result<ReadPlan> {
    let mode = if options.eager.unwrap_or(environment.eager) { Mode::Eager } else { Mode::Lazy };
    let verify = match (options.verify, mode) {
        (Some(true), _) => Verify::Everything,
        (None, Mode::Eager) => Verify::Whole,
        (Some(false), _) | (None, Mode::Lazy) => Verify::Never,
    };
    let Environment { read_threads: threads, read_chunk_bytes, .. } = environment;
    ReadPlan::new(reader.index(), selection, Settings { mode, verify, threads, read_chunk_bytes })
}

fn provide(plan: &ReadPlan, source: &FileSource) -> Result<Vec<Block>> {
    let provide = |memory: &Memory| match *memory {
        Memory::Mapping => Mapping::new(source).map(Block::Mapped),
        Memory::Buffer(bytes) => usize::try_from(bytes)
            .map_err(|_| Error::new(ErrorKind::Memory, format!("{bytes} bytes exceed the address space")))
            .and_then(HostBuffer::new)
            .map(Block::Buffer),
    };
    plan.memory.iter().map(provide).collect()
}
