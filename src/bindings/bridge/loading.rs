//! A load, flattened for C++.

use super::{
    Tagged,
    ffi::{CudaStream, GivenMemory, ProgressWords, View},
    guarded,
};
use crate::{
    device::cuda::{self, Cuda},
    environment::Environment,
    error::{Error, ErrorKind, Result},
    format::{Fit, Index},
    jobs::load::{Block, Prepared},
    plan::Memory,
};

/// A load: prepared, then read to the host or into given memory. That of nothing is empty.
#[derive(Default)]
pub struct Load {
    prepared: Option<Prepared>,
    places: Vec<usize>,
    unknown: Vec<i64>,
    unnamed: Vec<String>,
    blocks: std::vec::IntoIter<Block>,
    memory_bytes: Vec<i64>,
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
        guarded(|| {
            self.prepared()?;
            if let Some(prepared) = self.prepared.take() {
                self.blocks = prepared.into_blocks(progress.get())?.0.into_iter();
            }
            Ok(())
        })
    }

    /// The blocks, one by one, in the order of their numbers.
    pub(super) fn next_block(&mut self) -> std::result::Result<Box<Block>, Tagged> {
        let none = || Error::new(ErrorKind::Internal, "no block is left");
        guarded(|| self.blocks.next().map(Box::new).ok_or_else(none))
    }

    /// Loads into memory of the host.
    ///
    /// # Safety
    /// The memory is writable and nobody else looks at it until the call returns.
    pub(super) unsafe fn fill_host(
        &self,
        memory: &[GivenMemory],
        progress: ProgressWords,
    ) -> std::result::Result<(), Tagged> {
        guarded(|| {
            self.check(memory)?;
            let slice = |given: &GivenMemory| {
                let data = std::ptr::with_exposed_provenance_mut(given.address);
                match given.bytes {
                    0 => &mut [][..],
                    // SAFETY: the caller vouches for the memory; `check` has seen that no two overlap.
                    bytes => unsafe { std::slice::from_raw_parts_mut(data, bytes) },
                }
            };
            self.prepared()?.fill(memory.iter().map(slice).collect(), progress.get())
        })
    }

    /// Loads into memory of a CUDA device, in the order of the caller's stream.
    ///
    /// # Safety
    /// Stream and memory belong to the device and stay until what the call queues on the stream is done.
    pub(super) unsafe fn fill_cuda(
        &self,
        memory: &[GivenMemory],
        stream: &CudaStream,
        progress: ProgressWords,
    ) -> std::result::Result<(), Tagged> {
        guarded(|| {
            self.check(memory)?;
            let prepared = self.prepared()?;
            let addresses = memory.iter().map(|given| given.address as u64).collect();
            // SAFETY: the caller vouches for stream and memory.
            let device = unsafe { Cuda::new(stream.device, stream.stream, addresses) }?;
            let outcome = prepared.transfer(&device, cuda::pinned(), progress.get());
            if !Environment::read()?.cache_pinned {
                cuda::pinned().clear();
            }
            outcome
        })
    }

    /// Refuses memory that is not what the plan asks for: as many pieces, of these sizes, none overlapping another.
    fn check(&self, memory: &[GivenMemory]) -> Result<()> {
        let sizes = memory.iter().map(|given| i64::try_from(given.bytes).unwrap_or(i64::MAX));
        if !sizes.eq(self.memory_bytes.iter().copied()) {
            return Err(Error::argument("the memory given is not of the sizes that the load needs"));
        }
        if overlap(memory) {
            return Err(Error::argument("two of the tensors given share memory, but not in the file"));
        }
        Ok(())
    }
}

/// Whether any two pieces of memory have a byte in common.
pub(super) fn overlap(memory: &[GivenMemory]) -> bool {
    let mut ranges: Vec<_> = memory
        .iter()
        .filter(|given| given.bytes > 0)
        .map(|given| (given.address, given.address.saturating_add(given.bytes)))
        .collect();
    ranges.sort_unstable();
    ranges.iter().zip(ranges.iter().skip(1)).any(|(one, other)| other.0 < one.1)
}
