//! Loading tensors: open, plan, provide memory, read; into host memory, or through staging into a device's.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use crate::plan::Place;
use crate::{
    device::{Device, pool::Pool, transfer},
    environment::Environment,
    error::{At, Error, ErrorKind, Result},
    format::{Fit, Index},
    io::{self, Files, HostBuffer, Mapping, Route, Source, prefetch::prefetch, read::ChunkReader},
    jobs::settings,
    model::Model,
    numa::{Node, Nodes, Stay},
    os::{self, errno},
    plan::{Ignore, Memory, ReadPlan, Selection, Verify, View},
    progress::Progress,
    stats::{Clock, Report},
};

/// What a caller may ask of a load; `None` leaves it to the environment and the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Read every byte before returning, instead of mapping the file. Default: `FLASHPACK_CPU_PARALLEL_READ`; and
    /// where that says to map, the tensors are read ahead in the background.
    pub eager: Option<bool>,
    /// Verify digests. Default: in all loads but lazy ones, of files that have digests.
    pub verify: Option<bool>,
    /// Where the tensors go; those to the host are mapped unless the load is eager.
    pub place: Place,
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

    const fn buffer(&self) -> Option<&HostBuffer> {
        match self {
            Self::Mapped(_) => None,
            Self::Buffer(buffer) => Some(buffer),
        }
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
        let bytes = usize::try_from(view.bytes()).expect("a loaded tensor fits in memory");
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
/// Those of [`Model::open`], [`prepare`] and [`Prepared::into_host`].
pub fn load(
    path: &Path,
    selection: Selection<'_>,
    options: Options,
    progress: Progress<'_>,
) -> Result<Loaded> {
    prepare(&Model::open(path)?, selection, options)?.into_host(progress)
}

/// A load that has been decided on and not begun.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) files: Files,
    pub(crate) route: Route,
    pub(crate) index: Arc<Index>,
    plan: ReadPlan,
    /// What the plan maps.
    mapping: Option<Mapping>,
    /// Whether the tensors are called by their numbers.
    numbered: bool,
    pub(crate) reads_ahead: bool,
    environment: Environment,
    /// The NUMA node that readers of a load to the host stay on.
    caller_node: Option<Node>,
    /// How long it took to decide, and to open the model if this is its first load.
    open: Duration,
}

/// [`prepare`] for the tensors of `names`, in the order of the file, and how the names fit. `None`, and nothing is
/// decided, unless these are the names of all tensors, or with `partly` of some.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_fitting(
    model: &Model,
    names: &[&str],
    partly: bool,
    options: Options,
) -> Result<(Option<Prepared>, Fit)> {
    let fit = model.index.fit(names);
    let prepared = match (&*fit.unknown, &*fit.unnamed) {
        ([], []) => Some(prepare(model, Selection::Except(&Ignore::default()), options)?),
        ([], _) if partly => {
            let name = |&(record, _): &(usize, usize)| model.index.records()[record].name().to_owned();
            let names: Vec<String> = fit.pairs.iter().map(name).collect();
            Some(prepare(model, Selection::Names(&names), options)?)
        }
        _ => None,
    };
    Ok((prepared, fit))
}

/// Decides how to load `selection` of `model`.
///
/// # Errors
/// Those of [`ReadPlan::new`] and of mapping; [`ErrorKind::Argument`] for a malformed environment variable.
pub fn prepare(model: &Model, selection: Selection<'_>, options: Options) -> Result<Prepared> {
    let began = Instant::now();
    let environment = Environment::read()?;
    let place = match options.place {
        Place::Host if !options.eager.unwrap_or(environment.eager) && can_be_mapped(&model.files) => {
            Place::Mapping
        }
        place => place,
    };
    let index = Arc::clone(&model.index);
    let request = Request { index: &index, selection, options, environment };
    let (mut files, mut route, mut plan) = request.decide(&model.files, place)?;
    let mapping = match plan.memory.contains(&Memory::Mapping).then(|| Mapping::new(&files)).transpose() {
        Err(error) if error.errno() == Some(errno::ENODEV) => {
            (files, route, plan) = request.decide(&model.files, Place::Host)?;
            None
        }
        mapping => mapping?,
    };
    let numbered = matches!(selection, Selection::Blocks | Selection::Payload(_));
    let (reads_ahead, open) = (options.eager.is_none(), model.take_opening_time() + began.elapsed());
    let caller_node = model.node;
    Ok(Prepared { files, route, index, plan, mapping, numbered, reads_ahead, environment, caller_node, open })
}

/// Whether memory can show the bytes of `files`. Others are read, and decoded, whatever the load asks for.
fn can_be_mapped(files: &Files) -> bool {
    !files.is_far() && !files.is_encoded() && (os::MAPS_SIDE_BY_SIDE || files.iter().count() == 1)
}

/// What a load is to do, and for whom.
#[derive(Clone, Copy)]
struct Request<'a> {
    index: &'a Index,
    selection: Selection<'a>,
    options: Options,
    environment: Environment,
}

impl Request<'_> {
    /// The plan, and by which way it reads the files.
    fn decide(self, files: &Files, place: Place) -> Result<(Files, Route, ReadPlan)> {
        let Self { index, selection, options, environment } = self;
        let plan = |direct: bool, waits: bool| {
            let mut knobs = settings::settings(place, options.verify, direct, waits, environment);
            if files.is_far() {
                knobs = settings::far(knobs, selection.is_partial(), &environment);
            }
            if let Some(chunk_bytes) = files.encoded_chunk_bytes() {
                knobs = settings::encoded(knobs, waits, chunk_bytes);
            }
            if selection.is_sliced() && options.verify.is_none() {
                knobs.verify = Verify::Whole; // what cannot be mapped is read, also by a load that maps the rest
            }
            ReadPlan::new(index, selection, knobs).at(files.path())
        };
        let (files, route) = if place == Place::Mapping && !selection.is_partial() {
            files.choose(io::Asked::mapping(options.verify == Some(true)))?
        } else if selection.is_whole(index) {
            files.choose(io::Asked::all(environment.direct_io))?
        } else {
            let nearby = plan(false, false)?;
            let (files, route) =
                files.choose(io::Asked::parts(environment.direct_io, &nearby.read_ranges()))?;
            if !route.waits() {
                return Ok((files, route, nearby));
            }
            (files, route)
        };
        let plan = plan(files.is_direct(), route.waits())?;
        Ok((files, route, plan))
    }
}

impl Prepared {
    /// What will be done.
    #[must_use]
    pub const fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    /// What the tensors are of.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The tensors' names; of macroblocks, their numbers.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        (0..self.plan.views.len()).map(|number| self.label(number)).collect()
    }

    /// The name of tensor `number`; of a macroblock, or of a range of the payload, its number.
    pub(crate) fn label(&self, number: usize) -> String {
        let source = self.plan.views[number].source;
        if self.numbered { source.to_string() } else { self.index.records()[source].name().to_owned() }
    }

    /// Loads into memory of this process.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] if the memory cannot be had; [`ErrorKind::Io`] and [`ErrorKind::Checksum`] from reading.
    pub fn into_host(self, progress: Progress<'_>) -> Result<Loaded> {
        let names = self.names();
        let (blocks, views) = self.into_blocks(progress)?;
        Ok(Loaded { blocks, views, names })
    }

    /// [`Prepared::into_host`] for those who need no names.
    pub(crate) fn into_blocks(mut self, progress: Progress<'_>) -> Result<(Vec<Block>, Vec<View>)> {
        let mut blocks = provide(&self.plan, self.mapping.take()).at(self.files.path())?;
        let is_direct = self.files.is_direct();
        let buffers =
            |blocks: &[Block], act: fn(&HostBuffer)| blocks.iter().filter_map(Block::buffer).for_each(act);
        if is_direct {
            buffers(&blocks, HostBuffer::keep_from_children);
        }
        let memory = blocks.iter_mut().map(Block::as_mut_slice).collect();
        let ReadPlan { tasks, readers, .. } = &self.plan;
        self.timed(self.caller_node, progress, |reader| io::read::read(reader, tasks, memory, *readers))?;
        if is_direct {
            buffers(&blocks, HostBuffer::share_with_children);
        }
        if let (true, Some(Block::Mapped(mapping))) = (self.reads_ahead, blocks.first()) {
            prefetch(
                self.files,
                &self.plan.mapped_ranges(),
                mapping,
                settings::waiting_readers(&self.environment),
            );
        }
        Ok((blocks, self.plan.views))
    }

    /// Fills `memory` of any kind, a slice for each memory of the plan.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and [`ErrorKind::Checksum`]; the memory then holds some of the bytes.
    pub fn fill(&self, memory: Vec<&mut [u8]>, progress: Progress<'_>) -> Result<()> {
        let ReadPlan { tasks, readers, .. } = &self.plan;
        // The memory lies where it does.
        self.timed(None, progress, |reader| io::read::read_anywhere(reader, tasks, memory, *readers))
    }

    /// Fills a device's memories, those of the plan; see [`transfer::transfer`].
    ///
    /// # Errors
    /// As [`Prepared::fill`], and those of the device.
    pub fn transfer<D: Device>(
        &self,
        device: &D,
        pool: &Pool<D::Staging>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let ReadPlan { tasks, readers, .. } = &self.plan;
        self.timed(device.node(), progress, |reader| {
            transfer::transfer(reader, tasks, device, pool, *readers)
        })
        .at(self.files.path())
    }

    /// Runs `work`, on `node` if it may, and remembers where its time went.
    fn timed(
        &self,
        node: Option<Node>,
        progress: Progress<'_>,
        work: impl FnOnce(&ChunkReader<'_, Files>) -> Result<()>,
    ) -> Result<()> {
        let (began, clock) = (Instant::now(), Clock::new(self.environment.timeline));
        let bytes = self.plan.read_bytes();
        progress.start(bytes);
        let stays = self.environment.numa && !self.plan.tasks.is_empty();
        let stay =
            node.and_then(|node| stays.then(|| Nodes::here().stay_on(node, self.plan.readers.first))?);
        work(&ChunkReader { source: &self.files, index: &self.index, progress, clock: &clock })?;
        // Only the first read tells whether the file system takes direct ones.
        let mut route = self.route;
        route.direct = self.files.is_direct();
        let report = Report {
            bytes,
            verified_bytes: self.plan.verified_bytes(),
            threads: self.plan.readers.most,
            direct: route.direct,
            from_disk: route.is_from_disk(),
            node: stay.as_ref().map(Stay::node),
            traffic: self.files.traffic(),
            open: self.open,
            ..Report::default()
        };
        report.with_times(&clock, began.elapsed()).remember();
        Ok(())
    }
}

fn provide(plan: &ReadPlan, mut mapping: Option<Mapping>) -> Result<Vec<Block>> {
    let mut provide = |memory: &Memory| match *memory {
        Memory::Mapping => {
            let none = || Error::new(ErrorKind::Internal, "the plan maps the file twice");
            mapping.take().map(Block::Mapped).ok_or_else(none)
        }
        Memory::Buffer(bytes) => usize::try_from(bytes)
            .map_err(|_| Error::new(ErrorKind::Memory, format!("{bytes} bytes exceed the address space")))
            .and_then(HostBuffer::new)
            .map(Block::Buffer),
    };
    plan.memory.iter().map(&mut provide).collect()
}
