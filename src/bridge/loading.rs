//! A load, flattened for C++.

use super::{
    Tagged,
    ffi::{CudaStream, GivenMemory, ProgressWords, View},
    guarded,
};
use crate::{
    device::cuda::{self, Cuda},
    error::{Error, ErrorKind, Result},
    load::{Block, Prepared},
    options::Environment,
    plan::Memory,
};

/// A load: prepared, then read to the host or into given memory.
pub struct Load {
    prepared: Option<Prepared>,
    blocks: std::vec::IntoIter<Block>,
    memory_bytes: Vec<i64>,
    names: Vec<String>,
    views: Vec<View>,
    sizes: Vec<i64>,
}

impl Load {
    pub(super) fn new(prepared: Prepared) -> Self {
        let mut sizes = Vec::new();
        let views = prepared.plan().views.iter().map(|view| {
            let first_size = sizes.len();
            // An index holds only shapes whose sizes fit i64.
            sizes.extend(view.shape.iter().map(|size| size.cast_signed()));
            View {
                dtype: view.dtype as i32,
                block: view.memory,
                offset: view.offset.cast_signed(),
                first_size,
                dims: view.shape.len(),
            }
        });
        let views = views.collect();
        let bytes = |memory: &Memory| match *memory {
            Memory::Buffer(bytes) => bytes.cast_signed(),
            Memory::Mapping => 0,
        };
        let memory_bytes = prepared.plan().memory.iter().map(bytes).collect();
        let names = prepared.names().to_vec();
        Self { prepared: Some(prepared), blocks: Vec::new().into_iter(), memory_bytes, names, views, sizes }
    }

    pub(super) fn names(&self) -> &Vec<String> {
        &self.names
    }

    pub(super) fn views(&self) -> &Vec<View> {
        &self.views
    }

    pub(super) fn sizes(&self) -> &Vec<i64> {
        &self.sizes
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
                self.blocks = prepared.into_host(progress.get())?.blocks.into_iter();
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
            let outcome = prepared.transfer(&device, &cuda::PINNED, progress.get());
            if !Environment::read()?.cache_pinned {
                cuda::PINNED.clear();
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
        let mut ranges: Vec<_> = memory
            .iter()
            .filter(|given| given.bytes > 0)
            .map(|given| (given.address, given.address.saturating_add(given.bytes)))
            .collect();
        ranges.sort_unstable();
        if ranges.iter().zip(ranges.iter().skip(1)).any(|(one, other)| other.0 < one.1) {
            return Err(Error::argument("two of the tensors given share memory, but not in the file"));
        }
        Ok(())
    }
}
