//! A save, in the flat values of C++.

use std::collections::BTreeMap;

use super::{
    CxxString, CxxVector, Tagged,
    ffi::{CudaStream, GivenMemory, PackOptions, ProgressWords, TensorSpec},
    guarded, native, strings,
};
use crate::{
    device::{
        cuda::{self, Cuda},
        fetch::fetch,
    },
    error::{Error, Result},
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

/// The type a tensor of `dtype` is stored as when floating tensors shall be `wanted` (-1: their own).
pub(super) fn stored_dtype(name: &str, dtype: i32, wanted: i32) -> std::result::Result<i32, Tagged> {
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

/// A [`Save`] on its way through C++.
pub(super) struct PackInProgress(Save<'static>);

/// Begins a save.
pub(super) fn pack(
    path: &CxxString,
    tensors: &[TensorSpec],
    options: &PackOptions,
    metadata: &CxxVector<CxxString>,
    checksum: &str,
    progress: ProgressWords,
) -> std::result::Result<Box<PackInProgress>, Tagged> {
    guarded(|| {
        let algorithm = Algorithm::asked(Some(checksum).filter(|name| !name.is_empty()))?;
        let align_bytes = u64::try_from(options.align_bytes)
            .map_err(|_| Error::argument(format!("align_bytes must be >= 0, not {}", options.align_bytes)))?;
        let order = if options.keep_order { Order::Given } else { Order::LargestFirst };
        let specs = tensors.iter().map(spec).collect::<Result<Vec<_>>>()?;
        let words = strings(metadata);
        let (pairs, []) = words.as_chunks::<2>() else {
            return Err(Error::argument("metadata is not a list of keys and values in turn"));
        };
        let metadata: BTreeMap<_, _> =
            pairs.iter().map(|[key, value]| (key.clone(), value.clone())).collect();
        let shard_bytes = (options.shard_bytes >= 0).then_some(options.shard_bytes.cast_unsigned());
        let destination = native(path).to_owned();
        let request = Request { destination, order, align_bytes, metadata, algorithm, shard_bytes };
        Ok(Box::new(PackInProgress(Save::begin(&specs, request, progress.get())?)))
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
    pub(super) fn order(&self) -> &Vec<usize> {
        self.0.order()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Tagged> {
        guarded(|| self.0.write(bytes))
    }

    /// Takes bytes from a CUDA device, as they are when what is queued on the caller's stream is done.
    ///
    /// # Safety
    /// Stream and memory belong to the device and stay until the call returns.
    pub(super) unsafe fn write_cuda(
        &mut self,
        memory: &GivenMemory,
        stream: &CudaStream,
    ) -> std::result::Result<(), Tagged> {
        guarded(|| {
            // SAFETY: the caller vouches for stream and memory.
            let device = unsafe { Cuda::new(stream.device, stream.stream, vec![memory.address as u64]) }?;
            let sink = |bytes: &[u8]| self.0.write(bytes);
            fetch(&device, cuda::pinned(), 0, memory.bytes as u64, sink)
        })
    }
}

pub(super) fn finish(pack: Box<PackInProgress>) -> std::result::Result<(), Tagged> {
    guarded(|| pack.0.finish().map(drop))
}
