//! Arrays in the caller's memory: filled from a file, or packed into one.

use std::{collections::BTreeMap, path::Path, ptr, slice};

use serde::Deserialize;

use crate::{
    codec::Level,
    error::{Error, Result},
    format::{
        DEFAULT_ALIGN_BYTES, DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    jobs::{
        load::{Options, Place, prepare},
        pack::Packer,
    },
    model::Model,
    plan::Selection,
    progress::Progress,
};

/// A dense, row-major, little-endian array in memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Array {
    name: String,
    /// torch's name of the element type.
    dtype: String,
    shape: Vec<u64>,
    /// Address of the first element; anything for an array without elements.
    address: usize,
}

impl Array {
    fn dtype(&self) -> Result<DType> {
        let unknown = || Error::argument(format!("Unsupported dtype of {:?}: {:?}", self.name, self.dtype));
        DType::from_name(&self.dtype).ok_or_else(unknown)
    }

    fn bytes(&self) -> Result<usize> {
        let size = |bytes: u64, &size: &u64| bytes.checked_mul(size);
        let bytes = self.shape.iter().try_fold(self.dtype()?.size(), size);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        bytes.ok_or_else(|| Error::argument(format!("{:?} exceeds the address space", self.name)))
    }
}

/// # Safety
/// The array lies at its address, and nobody writes to it during `'a`.
unsafe fn elements_of<'a>(array: &Array) -> Result<&'a [u8]> {
    match array.bytes()? {
        0 => Ok(&[]),
        // SAFETY: the caller vouches for the memory.
        bytes => Ok(unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(array.address), bytes) }),
    }
}

/// # Safety
/// The array lies at its address, and nobody else uses it during `'a`.
unsafe fn memory_of<'a>(array: &Array) -> Result<&'a mut [u8]> {
    let data = ptr::with_exposed_provenance_mut(array.address);
    match array.bytes()? {
        0 => Ok(&mut []),
        // SAFETY: the caller vouches for the memory.
        bytes => Ok(unsafe { slice::from_raw_parts_mut(data, bytes) }),
    }
}

/// Fills `arrays` with the records of their names, dtypes and shapes, verified as an eager load is.
///
/// # Safety
/// Each array lies at its address; none overlaps another, and nobody else uses them until the call returns.
pub(super) unsafe fn fill(
    model: &Model,
    arrays: &[Array],
    verify: Option<bool>,
    progress: Progress<'_>,
) -> Result<()> {
    let names: Vec<String> = arrays.iter().map(|array| array.name.clone()).collect();
    let options = Options { eager: Some(true), verify, place: Place::GivenHost };
    let prepared = prepare(model, Selection::Names(&names), options)?;
    for (array, view) in arrays.iter().zip(&prepared.plan().views) {
        if view.dtype != array.dtype()? || view.shape[..] != array.shape[..] {
            return Err(Error::argument(format!(
                "record {:?} is {} of shape {:?}, but the array is {} of shape {:?}",
                array.name, view.dtype, view.shape, array.dtype, array.shape
            )));
        }
    }
    let views = &prepared.plan().views;
    // Of tied records the plan fills the first.
    let memory = views.iter().zip(arrays).enumerate().map(|(number, (view, array))| {
        if view.memory == number {
            // SAFETY: the caller vouches for the arrays.
            unsafe { memory_of(array) }
        } else {
            Ok(&mut [][..])
        }
    });
    prepared.fill(memory.collect::<Result<_>>()?, progress)?;
    for (number, view) in views.iter().enumerate().filter(|(number, view)| view.memory != *number) {
        // SAFETY: the caller vouches for the arrays, and the fill is over.
        unsafe { memory_of(&arrays[number])?.copy_from_slice(elements_of(&arrays[view.memory])?) };
    }
    Ok(())
}

/// Packs `arrays` into a file at `destination`, with the checksum and the compression of these names. Arrays that are the same memory are stored once.
///
/// # Safety
/// Each array lies at its address, and nobody writes to it until the call returns.
pub(super) unsafe fn pack(
    destination: &Path,
    arrays: &[Array],
    metadata: BTreeMap<String, String>,
    (checksum, compress): (Option<&str>, Option<&str>),
    progress: Progress<'_>,
) -> Result<()> {
    let (algorithm, specs) = (Algorithm::asked(checksum)?, specs(arrays)?);
    let packer =
        Packer::create(destination, &specs, Order::LargestFirst, DEFAULT_ALIGN_BYTES, metadata, progress)?;
    let mut packer = packer.digested_by(algorithm).compressed(Level::asked(compress)?)?;
    let order: Vec<usize> = packer.writes().iter().map(|write| write.tensor).collect();
    for tensor in order {
        // SAFETY: the caller vouches for the arrays.
        packer.write(unsafe { elements_of(&arrays[tensor]) }?)?;
    }
    packer.finish().map(drop)
}

fn specs(arrays: &[Array]) -> Result<Vec<TensorSpec>> {
    let mut first = BTreeMap::new();
    let spec = |(number, array): (usize, &Array)| {
        let (dtype, bytes) = (array.dtype()?, array.bytes()?);
        let same = *first.entry((array.address, bytes, dtype as i32)).or_insert(number);
        let tied_to = (bytes > 0 && same != number).then_some(same);
        Ok(TensorSpec { name: array.name.clone(), dtype, shape: array.shape.clone(), tied_to })
    };
    arrays.iter().enumerate().map(spec).collect()
}
