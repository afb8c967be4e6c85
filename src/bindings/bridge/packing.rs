//! A save, in the flat values of C++.

use std::collections::{BTreeMap, HashMap};

use super::{
    CxxString, CxxVector, Tagged, check_counts,
    ffi::{CudaStream, GivenMemory, GivenTensor, PackOptions, ProgressWords},
    native, strings, watched,
};
use crate::{
    codec::Level,
    device::{
        cuda::{self, Cuda, Relaxed},
        fetch::Fetcher,
    },
    environment::Environment,
    error::{Error, ErrorKind, Result},
    format::{
        DType,
        checksum::Algorithm,
        layout::{self, Order},
    },
    jobs::shards::{Request, Save},
};

fn known_dtype(name: &str, code: i32) -> Result<DType> {
    let unsupported = || Error::argument(format!("Unsupported dtype of {name:?}: torch's ScalarType {code}"));
    DType::from_code(code).ok_or_else(unsupported)
}

/// The type a tensor of `own` type is stored as when floating tensors shall be `wanted` (-1: their own).
fn stored_dtype(own: DType, wanted: i32) -> Result<DType> {
    if wanted == -1 {
        return Ok(own);
    }
    let wanted = known_dtype("the target", wanted)?;
    if !wanted.is_castable_float() {
        return Err(Error::argument(format!("Unsupported dtype: {wanted} is no floating type to cast to")));
    }
    Ok(if own.is_castable_float() { wanted } else { own })
}

/// What two tensors that show the same elements have in common: address, dtype, sizes and strides; where both are
/// contiguous the sizes may differ.
type Shown<'a> = (usize, i32, &'a [i64], &'a [i64], i64);

fn shown<'a>(tensor: &GivenTensor<'a>) -> Shown<'a> {
    let elements = tensor.sizes.iter().product();
    let (sizes, strides) =
        if tensor.contiguous { (&[][..], &[][..]) } else { (tensor.sizes, tensor.strides) };
    (tensor.address, tensor.dtype, sizes, strides, elements)
}

/// What is packed of `tensors`, each called by its name.
fn specs<'a>(
    names: Vec<String>,
    tensors: &'a [GivenTensor<'a>],
    wanted: i32,
) -> Result<Vec<layout::TensorSpec>> {
    let mut first = HashMap::new();
    let spec = |(number, (name, tensor)): (usize, (String, &'a GivenTensor<'a>))| {
        let dtype = stored_dtype(known_dtype(&name, tensor.dtype)?, wanted)?;
        let shape =
            tensor.sizes.iter().map(|&size| u64::try_from(size)).collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|_| Error::argument(format!("{name:?} has a negative size")))?;
        let key = shown(tensor);
        let same = (key.4 > 0).then(|| *first.entry(key).or_insert(number));
        Ok(layout::TensorSpec { name, dtype, shape, tied_to: same.filter(|same| *same != number) })
    };
    names.into_iter().zip(tensors).enumerate().map(spec).collect()
}

/// A [`Save`] on its way through C++.
pub(super) struct PackInProgress {
    save: Save<'static>,
    progress: ProgressWords,
    dtypes: Vec<DType>,
    /// Where the tensors lie that are saved just now, if not on the host.
    on_device: Option<OnDevice>,
}

/// What brings the tensors of a device, in the order of a stream.
struct OnDevice {
    stream: (i32, usize),
    fetcher: Fetcher<Cuda>,
    _relaxed: Relaxed,
}

/// Begins a save.
pub(super) fn pack(
    path: &CxxString,
    names: &CxxVector<CxxString>,
    tensors: &[GivenTensor],
    options: &PackOptions,
    metadata: &CxxVector<CxxString>,
    progress: ProgressWords,
) -> std::result::Result<Box<PackInProgress>, Tagged> {
    watched(progress, |_| {
        let named = |word| Some(word).filter(|word: &&str| !word.is_empty());
        let algorithm = Algorithm::asked(named(&options.checksum))?;
        let compress = Level::asked(named(&options.compress))?;
        let align_bytes = u64::try_from(options.align_bytes)
            .map_err(|_| Error::argument(format!("align_bytes must be >= 0, not {}", options.align_bytes)))?;
        let order = if options.keep_order { Order::Given } else { Order::LargestFirst };
        let names = strings(names);
        check_counts(names.len(), "names", tensors.len())?;
        let specs = specs(names, tensors, options.dtype)?;
        let words = strings(metadata);
        let (pairs, []) = words.as_chunks::<2>() else {
            return Err(Error::argument("metadata is not a list of keys and values in turn"));
        };
        let metadata: BTreeMap<_, _> =
            pairs.iter().map(|[key, value]| (key.clone(), value.clone())).collect();
        let shard_bytes = (options.shard_bytes >= 0).then_some(options.shard_bytes.cast_unsigned());
        let destination = native(path).to_owned();
        let request = Request { destination, order, align_bytes, metadata, algorithm, shard_bytes, compress };
        let dtypes = specs.iter().map(|spec| spec.dtype).collect();
        let save = Save::begin(&specs, request, progress.get())?;
        Ok(Box::new(PackInProgress { save, progress, dtypes, on_device: None }))
    })
}

impl PackInProgress {
    /// Numbers of the tensors whose bytes are wanted, in that order.
    pub(super) fn order(&self) -> &Vec<usize> {
        self.save.order()
    }

    /// torch's number of the type that a tensor is stored as.
    pub(super) fn dtype(&self, tensor: usize) -> i32 {
        self.dtypes[tensor] as i32
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Tagged> {
        watched(self.progress, |_| {
            self.flush()?;
            self.save.write(bytes)
        })
    }

    /// Goes on with tensors of a CUDA device, in the order of the caller's stream, which must not be captured.
    ///
    /// # Safety
    /// The stream belongs to the device and stays until the save is over, and so does this thread.
    pub(super) unsafe fn use_cuda(&mut self, stream: &CudaStream) -> std::result::Result<(), Tagged> {
        watched(self.progress, |_| {
            let CudaStream { device, stream } = *stream;
            if self.on_device.as_ref().is_some_and(|it| it.stream == (device, stream)) {
                return Ok(());
            }
            self.flush()?;
            self.on_device = None;
            // SAFETY: the caller vouches for the stream.
            let (relaxed, cuda) =
                unsafe { (cuda::begin(device, stream)?, Cuda::new(device, stream, vec![])?) };
            let fetcher = Fetcher::new(cuda, cuda::pinned(Environment::read()?.pinned_bytes))?;
            self.on_device = Some(OnDevice { stream: (device, stream), fetcher, _relaxed: relaxed });
            Ok(())
        })
    }

    /// Takes bytes from that device, as they are when what is queued on the caller's stream is done.
    ///
    /// # Safety
    /// The memory belongs to the device, and is freed in the order of the caller's stream.
    pub(super) unsafe fn write_cuda(&mut self, memory: &GivenMemory) -> std::result::Result<(), Tagged> {
        watched(self.progress, |_| {
            let none = || Error::new(ErrorKind::Internal, "no device was named");
            let fetcher = &mut self.on_device.as_mut().ok_or_else(none)?.fetcher;
            // SAFETY: the caller vouches for the memory.
            unsafe {
                fetcher.fetch(memory.address as u64, memory.bytes as u64, &mut |it| self.save.write(it))
            }
        })
    }

    /// Writes what is on its way from a device.
    fn flush(&mut self) -> Result<()> {
        let Some(OnDevice { fetcher, .. }) = &mut self.on_device else {
            return Ok(());
        };
        fetcher.finish(&mut |bytes| self.save.write(bytes))
    }
}

pub(super) fn finish(mut pack: Box<PackInProgress>) -> std::result::Result<(), Tagged> {
    watched(pack.progress, |_| {
        pack.flush()?;
        pack.save.finish().map(drop)
    })
}
