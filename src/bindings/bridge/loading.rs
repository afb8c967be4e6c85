//! A load, flattened for C++.

use std::ops::Range;

use super::{
    Tagged, check_counts,
    ffi::{CudaStream, GivenMemory, GivenTensor, ProgressWords, View},
    guarded, watched,
};
use crate::{
    device::cuda::{self, Cuda, Relaxed},
    environment::Environment,
    error::{Error, ErrorKind, Result},
    format::{Fit, Index},
    io::Source as _,
    jobs::load::{Block, Prepared},
    plan::{
        self, Memory, ReadPlan,
        fit::{Filling, Given, first_misfit, overlap},
    },
};

/// A load: prepared, then read to the host or into given memory. That of nothing is empty.
#[derive(Default)]
pub(super) struct Load {
    prepared: Option<Prepared>,
    places: Vec<usize>,
    unknown: Vec<i64>,
    unnamed: Vec<String>,
    blocks: std::vec::IntoIter<Block>,
    memory_bytes: Vec<i64>,
    /// Memory that was given, if the load is to fill any.
    memory: Vec<GivenMemory>,
    copied: Vec<usize>,
    views: Vec<View>,
    sizes: Vec<i64>,
    strides: Vec<i64>,
}

impl Load {
    pub(super) fn new(prepared: Prepared) -> Self {
        let planned = &prepared.plan().views;
        let (mut sizes, mut strides) = (Vec::new(), Vec::new());
        let views = planned.iter().map(|view| {
            let first_size = sizes.len();
            // An index holds only shapes whose sizes and strides fit i64.
            sizes.extend(view.shape.iter().map(|size| size.cast_signed()));
            strides.resize(sizes.len(), 1);
            let mut stride = 1;
            for (own, size) in strides[first_size..].iter_mut().zip(&sizes[first_size..]).rev() {
                *own = stride;
                stride *= size.max(&1);
            }
            View {
                dtype: view.dtype as i32,
                block: view.memory,
                offset: view.offset.cast_signed(),
                first_size,
                dims: view.shape.len(),
                same_as: view.same_as,
            }
        });
        let views = views.collect();
        let bytes = |memory: &Memory| match *memory {
            Memory::Buffer(bytes) => bytes.cast_signed(),
            Memory::Mapping => 0,
        };
        let memory_bytes = prepared.plan().memory.iter().map(bytes).collect();
        let prepared = Some(prepared);
        Self { prepared, memory_bytes, views, sizes, strides, ..Self::default() }
    }

    /// The same, with what C++ asks about the names that it has given.
    pub(super) fn fitting(self, fit: &Fit, index: &Index) -> Self {
        Self {
            places: fit.pairs.iter().map(|&(_, place)| place).collect(),
            unknown: fit.unknown.iter().map(|&place| place.cast_signed() as i64).collect(),
            unnamed: fit.unnamed.iter().map(|&number| index.records()[number].name().to_owned()).collect(),
            ..self
        }
    }

    /// The name of tensor `number`, of a load by names that has not been read yet.
    pub(super) fn name(&self, number: usize) -> std::result::Result<&str, Tagged> {
        guarded(|| {
            let prepared = self.prepared()?;
            Ok(prepared.index().records()[prepared.plan().views[number].source].name())
        })
    }

    /// Of a load of what fits names: for each view the place of its name among them.
    pub(super) fn places(&self) -> &Vec<usize> {
        &self.places
    }

    /// Of such a load: the places of the names that no record has.
    pub(super) fn unknown(&self) -> &Vec<i64> {
        &self.unknown
    }

    /// Of such a load: the names of the records that are not among them.
    pub(super) fn unnamed(&self) -> &Vec<String> {
        &self.unnamed
    }

    pub(super) fn views(&self) -> &Vec<View> {
        &self.views
    }

    pub(super) fn sizes(&self) -> &Vec<i64> {
        &self.sizes
    }

    /// Of row-major elements, as many as sizes.
    pub(super) fn strides(&self) -> &Vec<i64> {
        &self.strides
    }

    /// Bytes of each memory that the views lie in, if C++ is to provide it.
    pub(super) fn memory_bytes(&self) -> &Vec<i64> {
        &self.memory_bytes
    }

    fn prepared(&self) -> Result<&Prepared> {
        self.prepared.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "the load is over"))
    }

    /// Loads into blocks of the process's own memory.
    pub(super) fn read_to_host(&mut self, progress: ProgressWords) -> std::result::Result<(), Tagged> {
        watched(progress, |progress| {
            self.prepared()?;
            if let Some(prepared) = self.prepared.take() {
                self.blocks = prepared.into_blocks(progress)?.0.into_iter();
            }
            Ok(())
        })
    }

    /// The blocks, one by one, in the order of their numbers.
    pub(super) fn next_block(&mut self) -> std::result::Result<Box<Block>, Tagged> {
        let none = || Error::new(ErrorKind::Internal, "no block is left");
        guarded(|| self.blocks.next().map(Box::new).ok_or_else(none))
    }

    /// Whether the tensors whose names were given fit: all are told, all that the file holds can take what it does, and no
    /// two share memory. If their memory is to be filled, it is provided then.
    pub(super) fn fits_all(&mut self, tensors: &[GivenTensor]) -> bool {
        let Some(plan) = self.prepared.as_ref().map(Prepared::plan) else {
            return false;
        };
        if plan.views.is_empty() || self.places.len() + self.unknown.len() != tensors.len() {
            return false;
        }
        let device = Given::from(&tensors[0]).device;
        let fits = |(number, (view, &place)): (usize, (&plan::View, &usize))| {
            let given = Given::from(&tensors[place]);
            view.same_as == number && given.misfit(view, device, plan.place).is_none()
        };
        let memory =
            |(view, &place): (&plan::View, &usize)| Given::from(&tensors[place]).memory(view.dtype.size());
        let pairs = || plan.views.iter().zip(&self.places);
        pairs().enumerate().all(fits)
            && !overlap(pairs().map(memory).collect())
            && self.place_in(|number| tensors[self.places[number]].address).is_some_and(|(memory, copied)| {
                (self.memory, self.copied) = (memory, copied);
                true
            })
    }

    /// Refuses tensors, one for each view, that do not fit. If their memory is to be filled, it is provided then.
    pub(super) fn require_fit(&mut self, tensors: &[GivenTensor]) -> std::result::Result<(), Tagged> {
        guarded(|| {
            let prepared = self.prepared()?;
            let ReadPlan { views, place, .. } = prepared.plan();
            check_counts(views.len(), "names", tensors.len())?;
            if let Some((number, why)) = first_misfit(views, tensors.iter().map(Given::from), *place) {
                let what = format!("cannot load {:?} into the tensor given: {why}", prepared.label(number));
                return Err(Error::argument(what).at(prepared.files.path()));
            }
            let shared = || {
                Error::argument("two of the tensors given share memory, but not in the file")
                    .at(prepared.files.path())
            };
            (self.memory, self.copied) =
                self.place_in(|number| tensors[number].address).ok_or_else(shared)?;
            Ok(())
        })
    }

    /// The memory to fill, of tensors at these addresses, and the tensors that get copies; none of a load that provides
    /// its own. `None` if two share memory.
    fn place_in(&self, address: impl Fn(usize) -> usize) -> Option<(Vec<GivenMemory>, Vec<usize>)> {
        let plan = self.prepared.as_ref()?.plan();
        if !plan.place.is_given() {
            return Some((vec![], vec![]));
        }
        let addresses: Vec<usize> = (0..plan.views.len()).map(address).collect();
        let Filling { read, copied } = Filling::new(&plan.views, &addresses)?;
        let memory = |range: Range<usize>| GivenMemory { address: range.start, bytes: range.len() };
        Some((read.into_iter().map(memory).collect(), copied))
    }

    /// The tensors that are to get a copy of what the first shows that is tied to them.
    pub(super) fn copied(&self) -> &Vec<usize> {
        &self.copied
    }

    /// Takes memory to fill: as many pieces as the plan asks for, of these sizes, none overlapping another.
    pub(super) fn provide(&mut self, memory: &[GivenMemory]) -> std::result::Result<(), Tagged> {
        guarded(|| {
            self.check(memory)?;
            let range = |given: &GivenMemory| given.address..given.address.saturating_add(given.bytes);
            if overlap(memory.iter().map(range).collect()) {
                return Err(Error::new(ErrorKind::Internal, "two pieces of the memory given overlap"));
            }
            self.memory = memory.to_vec();
            Ok(())
        })
    }

    /// Refuses memory that is not of the sizes that the plan asks for.
    fn check(&self, memory: &[GivenMemory]) -> Result<()> {
        let sizes = memory.iter().map(|given| i64::try_from(given.bytes).unwrap_or(i64::MAX));
        if sizes.eq(self.memory_bytes.iter().copied()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "the memory given is not of the sizes that the load needs"))
    }

    /// Loads into the memory given, of the host.
    ///
    /// # Safety
    /// The memory is writable and nobody else looks at it until the call returns.
    pub(super) unsafe fn fill_host(&self, progress: ProgressWords) -> std::result::Result<(), Tagged> {
        watched(progress, |progress| {
            self.check(&self.memory)?;
            let slice = |given: &GivenMemory| {
                let data = std::ptr::with_exposed_provenance_mut(given.address);
                match given.bytes {
                    0 => &mut [][..],
                    // SAFETY: the caller vouches for the memory; whoever set it has seen that no two pieces overlap.
                    bytes => unsafe { std::slice::from_raw_parts_mut(data, bytes) },
                }
            };
            self.prepared()?.fill(self.memory.iter().map(slice).collect(), progress)
        })
    }

    /// Loads into the memory given, of a CUDA device, in the order of the caller's stream, which only this thread uses
    /// for it.
    ///
    /// # Safety
    /// Stream and memory belong to the device and stay until what the call queues on the stream is done.
    pub(super) unsafe fn fill_cuda(
        &self,
        stream: &CudaStream,
        progress: ProgressWords,
    ) -> std::result::Result<(), Tagged> {
        watched(progress, |progress| {
            self.check(&self.memory)?;
            let (prepared, environment) = (self.prepared()?, Environment::read()?);
            let addresses = self.memory.iter().map(|given| given.address as u64).collect();
            // SAFETY: the caller vouches for stream and memory.
            let device = unsafe { Cuda::new(stream.device, stream.stream, addresses) }?;
            let outcome = prepared.transfer(&device, cuda::pinned(environment.pinned_bytes), progress);
            drop(device);
            if !environment.cache_pinned {
                cuda::release();
            }
            outcome
        })
    }
}

/// Refuses a stream that is being captured into a graph; until what is returned goes, this thread may allocate while
/// another captures.
///
/// # Safety
/// The stream belongs to the device.
pub(super) unsafe fn begin_on_cuda(stream: &CudaStream) -> std::result::Result<Box<Relaxed>, Tagged> {
    // SAFETY: the caller vouches for the stream.
    guarded(|| unsafe { cuda::begin(stream.device, stream.stream) }.map(Box::new))
}

/// Whether the stream is another one for other threads. Refuses one that is being captured.
///
/// # Safety
/// The stream belongs to the device.
pub(super) unsafe fn is_bound_to_thread(stream: &CudaStream) -> std::result::Result<bool, Tagged> {
    // SAFETY: the caller vouches for the stream.
    guarded(|| unsafe { cuda::is_bound_to_thread(stream.device, stream.stream) })
}

impl<'a> From<&GivenTensor<'a>> for Given<'a> {
    fn from(tensor: &GivenTensor<'a>) -> Self {
        Self {
            dtype: tensor.dtype,
            sizes: tensor.sizes,
            strides: tensor.strides,
            device: (tensor.device_type, tensor.device_index),
            is_dense: tensor.dense,
            is_contiguous: tensor.contiguous,
            address: tensor.address,
        }
    }
}

/// Refuses to exchange storages of tensors that have none, or of more tensors than there are values.
pub(super) fn check_exchange(
    tensors: &[GivenTensor],
    values: &[GivenTensor],
) -> std::result::Result<(), Tagged> {
    guarded(|| {
        check_counts(values.len(), "values", tensors.len())?;
        if tensors.iter().chain(values).all(|tensor| tensor.dense) {
            return Ok(());
        }
        Err(Error::argument("a tensor given is sparse or has no storage of its own"))
    })
}
