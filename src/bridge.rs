//! The cxx bridge: everything C++ may ask of Rust, in flat values. C++ calls Rust, never the reverse.
//!
//! Errors become `rust::Error` whose text ends in the tag of [`Error::to_tagged_string`]; so do panics.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use cxx::{CxxString, CxxVector};

use crate::{
    device::{
        cuda::{self, Cuda},
        fetch::fetch,
    },
    error::{Error, ErrorKind, Result},
    format::{
        DType,
        layout::{self, Order},
    },
    load::{self, Block, Prepared},
    options::Environment,
    pack::Packer,
    plan::{Ignore, Memory, Selection},
    progress::Progress,
    reader::Reader,
};

#[cxx::bridge(namespace = "flashpack")]
mod ffi {
    /// What a load may be told. 1 is yes, 0 no, -1 leaves it to the environment and the defaults.
    struct LoadOptions {
        eager: i8,
        verify: i8,
        place: Place,
    }

    /// Where tensors go.
    enum Place {
        /// Memory of the process, provided by the load.
        Host,
        /// A CUDA device's memory, provided by C++.
        Cuda,
        /// Host memory of tensors that exist.
        GivenHost,
        /// CUDA memory of tensors that exist.
        GivenCuda,
    }

    /// A CUDA device and the stream in whose order its memory is used (0: the default stream).
    struct CudaStream {
        device: i32,
        stream: usize,
    }

    /// Memory that a load fills: where it is, and how many bytes.
    struct GivenMemory {
        address: usize,
        bytes: usize,
    }

    /// What the process's pinned staging memory amounts to.
    struct PinnedUsage {
        bytes: i64,
        peak_bytes: i64,
        /// Some memory could not be pinned.
        pageable: bool,
    }

    /// Address of three int64 (bytes done, bytes in all, cancel) that outlive the operation, or 0.
    #[derive(Clone, Copy)]
    struct ProgressWords {
        address: usize,
    }

    /// A loaded tensor.
    struct View {
        /// torch's `ScalarType` number.
        dtype: i32,
        /// The block it lies in.
        block: usize,
        /// Its first byte there.
        offset: i64,
        /// Where its sizes begin in [`Load`]'s flat list, and how many there are.
        first_size: usize,
        dims: usize,
    }

    /// A tensor to pack.
    struct TensorSpec {
        name: String,
        /// torch's `ScalarType` number of the elements as stored.
        dtype: i32,
        shape: Vec<i64>,
        /// Number of an earlier tensor with the same elements in the same memory, or -1.
        tied_to: i64,
    }

    extern "Rust" {
        fn footer(path: &str) -> Result<String>;
        fn verify(path: &str, progress: ProgressWords) -> Result<i64>;

        type Load;
        fn load_names(path: &str, names: &CxxVector<CxxString>, options: &LoadOptions) -> Result<Box<Load>>;
        fn load_except(
            path: &str,
            names: &CxxVector<CxxString>,
            prefixes: &CxxVector<CxxString>,
            suffixes: &CxxVector<CxxString>,
            options: &LoadOptions,
        ) -> Result<Box<Load>>;
        fn load_blocks(path: &str, options: &LoadOptions) -> Result<Box<Load>>;
        fn names(self: &Load) -> &Vec<String>;
        fn views(self: &Load) -> &Vec<View>;
        fn sizes(self: &Load) -> &Vec<i64>;
        fn memory_bytes(self: &Load) -> &Vec<i64>;
        fn read_to_host(self: &mut Load, progress: ProgressWords) -> Result<()>;
        fn next_block(self: &mut Load) -> Result<Box<Block>>;
        unsafe fn fill_host(self: &Load, memory: &[GivenMemory], progress: ProgressWords) -> Result<()>;
        unsafe fn fill_cuda(
            self: &Load,
            memory: &[GivenMemory],
            stream: &CudaStream,
            progress: ProgressWords,
        ) -> Result<()>;

        fn pinned_usage() -> PinnedUsage;
        fn release_pinned();

        type Block;
        fn data(self: &mut Block) -> *mut u8;

        type PackInProgress;
        fn stored_dtype(name: &str, dtype: i32, wanted: i32) -> Result<i32>;
        fn pack(
            path: &str,
            tensors: &[TensorSpec],
            keep_order: bool,
            align_bytes: i64,
            metadata: &CxxVector<CxxString>,
            progress: ProgressWords,
        ) -> Result<Box<PackInProgress>>;
        fn order(self: &PackInProgress) -> &Vec<usize>;
        fn write(self: &mut PackInProgress, bytes: &[u8]) -> Result<()>;
        unsafe fn write_cuda(
            self: &mut PackInProgress,
            memory: &GivenMemory,
            stream: &CudaStream,
        ) -> Result<()>;
        fn finish(pack: Box<PackInProgress>) -> Result<()>;
    }

    // C++ makes the list that `pack` borrows.
    impl Vec<TensorSpec> {}
}

use ffi::{CudaStream, GivenMemory, LoadOptions, PinnedUsage, Place, ProgressWords, TensorSpec, View};

/// An error as it crosses the bridge: cxx shows it by `Display`.
struct Tagged(Error);

impl fmt::Display for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_tagged_string())
    }
}

/// Runs `operation`; a panic becomes an error, because unwinding into C++ would abort the process.
fn guarded<T>(operation: impl FnOnce() -> Result<T>) -> std::result::Result<T, Tagged> {
    let panicked = |_| Err(Error::new(ErrorKind::Internal, "internal error: a panic was caught"));
    // What a panic interrupts is dropped with the operation's values, so nothing inconsistent stays reachable.
    panic::catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(panicked).map_err(Tagged)
}

impl ProgressWords {
    fn get<'a>(self) -> Progress<'a> {
        // SAFETY: the address is 0 or that of three words in a tensor which the operator's caller holds until the
        // operator returns; ops.cpp checks type, size and device, and drops every user of `'a` before it returns.
        unsafe { Progress::from_ptr(std::ptr::with_exposed_provenance_mut(self.address)) }
    }
}

fn footer(path: &str) -> std::result::Result<String, Tagged> {
    guarded(|| Ok(Reader::open(Path::new(path))?.footer().to_owned()))
}

fn verify(path: &str, progress: ProgressWords) -> std::result::Result<i64, Tagged> {
    guarded(|| Ok(crate::verify::verify(Path::new(path), progress.get())?.verified_bytes.cast_signed()))
}

/// A load, flattened for C++: prepared, then read to the host or into given memory.
struct Load {
    prepared: Option<Prepared>,
    blocks: std::vec::IntoIter<Block>,
    memory_bytes: Vec<i64>,
    names: Vec<String>,
    views: Vec<View>,
    sizes: Vec<i64>,
}

impl Load {
    fn new(prepared: Prepared) -> Self {
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

    fn names(&self) -> &Vec<String> {
        &self.names
    }

    fn views(&self) -> &Vec<View> {
        &self.views
    }

    fn sizes(&self) -> &Vec<i64> {
        &self.sizes
    }

    /// Bytes of each memory that the views lie in, if C++ is to provide it.
    fn memory_bytes(&self) -> &Vec<i64> {
        &self.memory_bytes
    }

    fn prepared(&self) -> Result<&Prepared> {
        self.prepared.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "the load is over"))
    }

    /// Loads into blocks of the process's own memory.
    fn read_to_host(&mut self, progress: ProgressWords) -> std::result::Result<(), Tagged> {
        guarded(|| {
            self.prepared()?;
            if let Some(prepared) = self.prepared.take() {
                self.blocks = prepared.into_host(progress.get())?.blocks.into_iter();
            }
            Ok(())
        })
    }

    /// The blocks, one by one, in the order of their numbers.
    fn next_block(&mut self) -> std::result::Result<Box<Block>, Tagged> {
        let none = || Error::new(ErrorKind::Internal, "no block is left");
        guarded(|| self.blocks.next().map(Box::new).ok_or_else(none))
    }

    /// Loads into memory of the host.
    ///
    /// # Safety
    /// The memory is writable and nobody else looks at it until the call returns.
    unsafe fn fill_host(
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
    unsafe fn fill_cuda(
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

fn pinned_usage() -> PinnedUsage {
    let usage = cuda::PINNED.usage();
    PinnedUsage {
        bytes: usage.bytes.cast_signed() as i64,
        peak_bytes: usage.peak_bytes.cast_signed() as i64,
        pageable: cuda::fell_back_to_pageable(),
    }
}

fn release_pinned() {
    cuda::PINNED.clear();
}

fn strings(values: &CxxVector<CxxString>) -> Vec<String> {
    values.iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

const fn choice(value: i8) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn load(path: &str, selection: Selection<'_>, options: &LoadOptions) -> Result<Box<Load>> {
    let place = match options.place {
        Place::Cuda => load::Place::Device,
        Place::GivenHost => load::Place::GivenHost,
        Place::GivenCuda => load::Place::GivenDevice,
        _ => load::Place::Host,
    };
    let wanted = load::Options { eager: choice(options.eager), verify: choice(options.verify), place };
    load::prepare(Path::new(path), selection, wanted).map(|prepared| Box::new(Load::new(prepared)))
}

fn load_names(
    path: &str,
    names: &CxxVector<CxxString>,
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| load(path, Selection::Names(&strings(names)), options))
}

fn load_except(
    path: &str,
    names: &CxxVector<CxxString>,
    prefixes: &CxxVector<CxxString>,
    suffixes: &CxxVector<CxxString>,
    options: &LoadOptions,
) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| {
        let (names, prefixes, suffixes) = (strings(names), strings(prefixes), strings(suffixes));
        let ignore = Ignore { names: &names, prefixes: &prefixes, suffixes: &suffixes };
        load(path, Selection::Except(&ignore), options)
    })
}

fn load_blocks(path: &str, options: &LoadOptions) -> std::result::Result<Box<Load>, Tagged> {
    guarded(|| load(path, Selection::Blocks, options))
}

fn known_dtype(name: &str, code: i32) -> Result<DType> {
    let unsupported = || Error::argument(format!("Unsupported dtype of {name:?}: torch's ScalarType {code}"));
    DType::from_code(code).ok_or_else(unsupported)
}

/// The type a tensor of `dtype` is stored as when floating tensors shall be `wanted` (-1: their own).
fn stored_dtype(name: &str, dtype: i32, wanted: i32) -> std::result::Result<i32, Tagged> {
    guarded(|| {
        let own = known_dtype(name, dtype)?;
        if wanted == -1 {
            return Ok(own as i32);
        }
        let wanted = known_dtype("the target", wanted)?;
        if !wanted.is_castable_float() {
            return Err(Error::argument(format!(
                "Unsupported dtype: {wanted} is no floating type to cast to"
            )));
        }
        Ok(if own.is_castable_float() { wanted } else { own } as i32)
    })
}

/// A [`Packer`] on its way through C++.
struct PackInProgress {
    packer: Packer<'static>,
    order: Vec<usize>,
}

fn pack(
    path: &str,
    tensors: &[TensorSpec],
    keep_order: bool,
    align_bytes: i64,
    metadata: &CxxVector<CxxString>,
    progress: ProgressWords,
) -> std::result::Result<Box<PackInProgress>, Tagged> {
    guarded(|| {
        let align_bytes = u64::try_from(align_bytes)
            .map_err(|_| Error::argument(format!("align_bytes must be >= 0, not {align_bytes}")))?;
        let order = if keep_order { Order::Given } else { Order::LargestFirst };
        let specs = tensors.iter().map(spec).collect::<Result<Vec<_>>>()?;
        let words = strings(metadata);
        let (pairs, []) = words.as_chunks::<2>() else {
            return Err(Error::argument("metadata is not a list of keys and values in turn"));
        };
        let metadata: BTreeMap<_, _> =
            pairs.iter().map(|[key, value]| (key.clone(), value.clone())).collect();
        let packer = Packer::create(Path::new(path), &specs, order, align_bytes, metadata, progress.get())?;
        let order = packer.writes().iter().map(|write| write.tensor).collect();
        Ok(Box::new(PackInProgress { packer, order }))
    })
}

fn spec(tensor: &TensorSpec) -> Result<layout::TensorSpec> {
    let shape = tensor.shape.iter().map(|&size| u64::try_from(size)).collect::<std::result::Result<_, _>>();
    Ok(layout::TensorSpec {
        name: tensor.name.clone(),
        dtype: known_dtype(&tensor.name, tensor.dtype)?,
        shape: shape.map_err(|_| Error::argument(format!("{:?} has a negative size", tensor.name)))?,
        tied_to: usize::try_from(tensor.tied_to).ok(),
    })
}

impl PackInProgress {
    /// Numbers of the tensors whose bytes are wanted, in that order.
    fn order(&self) -> &Vec<usize> {
        &self.order
    }

    fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Tagged> {
        guarded(|| self.packer.write(bytes))
    }

    /// Takes bytes from a CUDA device, as they are when what is queued on the caller's stream is done.
    ///
    /// # Safety
    /// Stream and memory belong to the device and stay until the call returns.
    unsafe fn write_cuda(
        &mut self,
        memory: &GivenMemory,
        stream: &CudaStream,
    ) -> std::result::Result<(), Tagged> {
        guarded(|| {
            // SAFETY: the caller vouches for stream and memory.
            let device = unsafe { Cuda::new(stream.device, stream.stream, vec![memory.address as u64]) }?;
            let sink = |bytes: &[u8]| self.packer.write(bytes);
            fetch(&device, &cuda::PINNED, 0, memory.bytes as u64, sink)
        })
    }
}

fn finish(pack: Box<PackInProgress>) -> std::result::Result<(), Tagged> {
    guarded(|| pack.packer.finish().map(drop))
}
