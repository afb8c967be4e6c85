//! The cxx bridge: everything C++ may ask of Rust, in flat values. C++ calls Rust, never the reverse.
//!
//! Open models are in `bridge/models.rs`, what loads are asked for in `asking.rs`, loads in `loading.rs`, saves in
//! `packing.rs`. Errors become `rust::Error` whose text ends in the tag of [`Error::to_tagged_string`]; so do panics.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt as _,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use cxx::{CxxString, CxxVector};
use serde_json::Value;

use crate::{
    device::cuda::{self, Relaxed},
    error::{Error, ErrorKind, Result},
    jobs::load::Block,
    progress::Progress,
    stats::Report,
};

mod asking;
mod loading;
mod models;
mod packing;

#[allow(unreachable_pub, reason = "cxx makes what C++ sees public")]
#[cxx::bridge(namespace = "flashpack")]
mod ffi {
    /// What a load may be told. 1 is yes, 0 no, -1 leaves it to the environment and the defaults.
    struct LoadOptions {
        eager: i8,
        verify: i8,
        /// Whether the tensors go to a CUDA device.
        on_cuda: bool,
        /// Whether they are there already: their memory is filled.
        in_place: bool,
    }

    /// A CUDA device and the stream in whose order its memory is used (0: the default stream).
    struct CudaStream {
        device: i32,
        stream: usize,
    }

    /// Memory of the caller's: where it is, and how many bytes.
    #[derive(Clone, Copy)]
    struct GivenMemory {
        address: usize,
        bytes: usize,
    }

    /// A tensor of the caller's. Numbers of dtypes and devices are torch's.
    struct GivenTensor<'a> {
        dtype: i32,
        device_type: i32,
        device_index: i32,
        sizes: &'a [i64],
        strides: &'a [i64],
        /// An ordinary strided tensor.
        dense: bool,
        /// Its elements lie row-major, without gaps.
        contiguous: bool,
        /// Of its first element; 0 where nobody asks.
        address: usize,
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
        /// Where its sizes and strides begin in [`Load`]'s flat lists, and how many there are.
        first_size: usize,
        dims: usize,
        /// The first tensor of the load that shows the same bytes: itself, unless weights are tied.
        same_as: usize,
    }

    /// How tensors are packed.
    struct PackOptions {
        /// The type to store floating tensors as; -1: each its own.
        dtype: i32,
        keep_order: bool,
        align_bytes: i64,
        /// Bytes of tensors in a file, of several, or -1.
        shard_bytes: i64,
        /// The name of the algorithm; empty for the default.
        checksum: String,
        /// The name of the level; empty to store bytes as they are.
        compress: String,
    }

    extern "Rust" {
        fn printable(message: &CxxString) -> String;

        type Opened;
        fn open_model(
            path: &CxxString,
            cache_dir: &CxxString,
            progress: ProgressWords,
        ) -> Result<Box<Opened>>;
        fn number(self: &Opened) -> i64;
        fn words(self: &Opened) -> &[i64];
        fn footer(model: i64) -> Result<String>;
        fn verify(model: i64, progress: ProgressWords) -> Result<i64>;

        type Load;
        fn load_names(
            model: i64,
            names: &CxxVector<CxxString>,
            cuts: &[i64],
            options: &LoadOptions,
        ) -> Result<Box<Load>>;
        fn load_except(
            model: i64,
            names: &CxxVector<CxxString>,
            prefixes: &CxxVector<CxxString>,
            suffixes: &CxxVector<CxxString>,
            options: &LoadOptions,
        ) -> Result<Box<Load>>;
        fn load_fitting(model: i64, names: &str, partly: bool, options: &LoadOptions) -> Result<Box<Load>>;
        fn load_blocks(model: i64, options: &LoadOptions) -> Result<Box<Load>>;
        fn load_payload(
            model: i64,
            offsets: &[i64],
            tensors: &[GivenTensor],
            options: &LoadOptions,
        ) -> Result<Box<Load>>;
        fn name(self: &Load, number: usize) -> Result<&str>;
        fn places(self: &Load) -> &Vec<usize>;
        fn unknown(self: &Load) -> &Vec<i64>;
        fn unnamed(self: &Load) -> &Vec<String>;
        fn views(self: &Load) -> &Vec<View>;
        fn sizes(self: &Load) -> &Vec<i64>;
        fn strides(self: &Load) -> &Vec<i64>;
        fn memory_bytes(self: &Load) -> &Vec<i64>;
        fn fits_all(self: &mut Load, tensors: &[GivenTensor]) -> bool;
        fn require_fit(self: &mut Load, tensors: &[GivenTensor]) -> Result<()>;
        fn copied(self: &Load) -> &Vec<usize>;
        fn provide(self: &mut Load, memory: &[GivenMemory]) -> Result<()>;
        fn read_to_host(self: &mut Load, progress: ProgressWords) -> Result<()>;
        fn next_block(self: &mut Load) -> Result<Box<Block>>;
        /// # Safety
        /// The memory is writable and nobody else looks at it until the call returns.
        unsafe fn fill_host(self: &Load, progress: ProgressWords) -> Result<()>;
        /// # Safety
        /// Stream and memory belong to the device and stay until what the call queues on the stream is done.
        unsafe fn fill_cuda(self: &Load, stream: &CudaStream, progress: ProgressWords) -> Result<()>;

        type Relaxed;
        /// # Safety
        /// The stream belongs to the device.
        unsafe fn begin_on_cuda(stream: &CudaStream) -> Result<Box<Relaxed>>;
        /// # Safety
        /// The stream belongs to the device.
        unsafe fn is_bound_to_thread(stream: &CudaStream) -> Result<bool>;

        fn check_exchange(tensors: &[GivenTensor], values: &[GivenTensor]) -> Result<()>;

        fn last_load() -> String;
        fn pinned_usage() -> PinnedUsage;
        fn release_pinned();

        type Block;
        fn data(self: &mut Block) -> *mut u8;

        type PackInProgress;
        fn pack(
            path: &CxxString,
            names: &CxxVector<CxxString>,
            tensors: &[GivenTensor],
            options: &PackOptions,
            metadata: &CxxVector<CxxString>,
            progress: ProgressWords,
        ) -> Result<Box<PackInProgress>>;
        fn order(self: &PackInProgress) -> &Vec<usize>;
        fn dtype(self: &PackInProgress, tensor: usize) -> i32;
        fn write(self: &mut PackInProgress, bytes: &[u8]) -> Result<()>;
        /// # Safety
        /// The stream belongs to the device and stays until the save is over, and so does this thread.
        unsafe fn use_cuda(self: &mut PackInProgress, stream: &CudaStream) -> Result<()>;
        /// # Safety
        /// The memory belongs to the device, and is freed in the order of the caller's stream.
        unsafe fn write_cuda(self: &mut PackInProgress, memory: &GivenMemory) -> Result<()>;
        fn finish(pack: Box<PackInProgress>) -> Result<()>;
    }
}

use asking::{load_blocks, load_except, load_fitting, load_names, load_payload};
use ffi::{PinnedUsage, ProgressWords};
use loading::{Load, begin_on_cuda, check_exchange, is_bound_to_thread};
use models::{Opened, footer, open_model, verify};
use packing::{PackInProgress, finish, pack};

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

/// [`guarded`] for an operation that waits for servers, until whoever has the words cancels it.
fn watched<T>(
    words: ProgressWords,
    operation: impl FnOnce(Progress<'_>) -> Result<T>,
) -> std::result::Result<T, Tagged> {
    let progress = words.get();
    guarded(|| progress.watch(|| operation(progress)))
}

impl ProgressWords {
    fn get<'a>(self) -> Progress<'a> {
        // SAFETY: the address is 0 or that of three words in a tensor which the operator's caller holds until the
        // operator returns; ops.cpp checks type, size and device, and drops every user of `'a` before it returns.
        unsafe { Progress::from_ptr(std::ptr::with_exposed_provenance_mut(self.address)) }
    }
}

/// The path in the operating system's own bytes, which need not be UTF-8.
fn native(path: &CxxString) -> &Path {
    Path::new(OsStr::from_bytes(path.as_bytes()))
}

/// `message` as UTF-8, which is all that torch can make an exception of.
fn printable(message: &CxxString) -> String {
    message.to_string_lossy().into_owned()
}

/// What the last load of this thread did, as JSON; null before the first.
fn last_load() -> String {
    Report::last().map_or(Value::Null, |report| report.to_json()).to_string()
}

fn pinned_usage() -> PinnedUsage {
    let usage = cuda::usage();
    PinnedUsage {
        bytes: usage.bytes.cast_signed() as i64,
        peak_bytes: usage.peak_bytes.cast_signed() as i64,
        pageable: cuda::fell_back_to_pageable(),
    }
}

fn release_pinned() {
    cuda::release();
}

fn strings(values: &CxxVector<CxxString>) -> Vec<String> {
    values.iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

/// Refuses lists that do not belong together.
fn check_counts(count: usize, what: &str, tensors: usize) -> Result<()> {
    if count == tensors {
        return Ok(());
    }
    Err(Error::argument(format!("{count} {what} were given for {tensors} tensors")))
}
