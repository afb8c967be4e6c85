//! Loading into the variables of [`tch`] (feature `tch`).

use std::path::Path;

use tch::{Device, Kind, Tensor, nn::VarStore};

use crate::{
    error::{At, Error, Result},
    format::DType,
    jobs::load::{Loaded, Options, prepare},
    model::Model,
    plan::{Selection, View},
    progress::Progress,
};

/// Gives every variable of `store` the elements of the tensor with its name in the file at `path`.
///
/// Names, shapes and kinds are checked before the first variable changes; tensors of the file that have no variable are
/// left alone. Variables keep their identity and their device. With [`Options::eager`] the bytes are read and verified
/// first; else they are copied straight out of a mapping of the file.
///
/// # Errors
/// Those of [`prepare`] and of reading; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a variable that is not in
/// the file, or there with another shape or type.
pub fn load_var_store(path: &Path, store: &VarStore, options: Options) -> Result<()> {
    let (names, mut variables): (Vec<String>, Vec<Tensor>) = store.variables().into_iter().unzip();
    let prepared = prepare(&Model::open(path)?, Selection::Names(&names), options)?;
    for (name, (view, variable)) in names.iter().zip(prepared.plan().views.iter().zip(&variables)) {
        check(name, view, variable).at(path)?;
    }
    let mut loaded = prepared.into_host(Progress::SILENT)?;
    tch::no_grad(|| {
        for (number, variable) in variables.iter_mut().enumerate() {
            if variable.numel() > 0 {
                variable.copy_(&borrowed(&mut loaded, number, variable));
            }
        }
    });
    Ok(())
}

fn check(name: &str, view: &View, variable: &Tensor) -> Result<()> {
    let shape: Vec<u64> = variable.size().iter().map(|size| size.cast_unsigned()).collect();
    if *view.shape != *shape {
        return Err(Error::argument(format!(
            "cannot load {name:?}: the variable has shape {shape:?}, the file's tensor {:?}",
            view.shape
        )));
    }
    let kind = variable.kind();
    if kind_of(view.dtype) != Some(kind) {
        return Err(Error::argument(format!(
            "cannot load {name:?}: the variable is of {kind:?}, the file's tensor of {}",
            view.dtype
        )));
    }
    Ok(())
}

/// The kind that tch has for `dtype`, if it has one.
const fn kind_of(dtype: DType) -> Option<Kind> {
    Some(match dtype {
        DType::Uint8 => Kind::Uint8,
        DType::Int8 => Kind::Int8,
        DType::Int16 => Kind::Int16,
        DType::Int32 => Kind::Int,
        DType::Int64 => Kind::Int64,
        DType::Float16 => Kind::Half,
        DType::Float32 => Kind::Float,
        DType::Float64 => Kind::Double,
        DType::Complex32 => Kind::ComplexHalf,
        DType::Complex64 => Kind::ComplexFloat,
        DType::Complex128 => Kind::ComplexDouble,
        DType::Bool => Kind::Bool,
        DType::Bfloat16 => Kind::BFloat16,
        DType::Float8E5m2 => Kind::Float8e5m2,
        DType::Float8E4m3fn => Kind::Float8e4m3fn,
        DType::Float8E5m2fnuz => Kind::Float8e5m2fnuz,
        DType::Float8E4m3fnuz => Kind::Float8e4m3fnuz,
        DType::Uint16 | DType::Uint32 | DType::Uint64 | DType::Float8E8m0fnu | DType::Float4E2m1fnX2 => {
            return None;
        }
    })
}

/// Tensor `number` where the load has put it, with shape and kind of `like`, which has been checked. It must not
/// outlive `loaded`.
fn borrowed(loaded: &mut Loaded, number: usize, like: &Tensor) -> Tensor {
    let view = &loaded.views[number];
    let offset = usize::try_from(view.offset).expect("a loaded tensor fits in memory");
    let data = loaded.blocks[view.memory].data();
    let (size, mut strides) = (like.size(), vec![1; like.dim()]);
    for dim in (1..size.len()).rev() {
        strides[dim - 1] = strides[dim] * size[dim];
    }
    // SAFETY: the plan placed the view, row-major and aligned, within its block; the caller drops the tensor before
    // the block.
    unsafe { Tensor::from_blob(data.add(offset), &size, &strides, like.kind(), Device::Cpu) }
}
