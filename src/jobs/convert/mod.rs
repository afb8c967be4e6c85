//! File to file, without tensors in between: safetensors to FlashPack and back, FlashPack in fewer bytes and back.

use std::path::{Path, PathBuf};

use crate::{
    error::Result,
    io::Input,
    model::{
        folder::{self, CONVERTIBLE},
        screen, weight_files,
    },
};

mod cast;
mod export;
mod import;
mod recode;

pub(crate) use cast::{Cast, between as cast_between};
pub use export::to_safetensors;
pub use import::{Request, from_safetensors, tensor_names};
pub use recode::recode;

use crate::format::DType;

/// Whether conversions cast elements of type `from` to type `to`.
#[must_use]
pub fn casts(from: DType, to: DType) -> bool {
    cast::between(from, to).is_some()
}

/// What a conversion made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Tensors in the new file.
    pub tensors: usize,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The weights that a conversion of `path` reads: a file, or of a folder the whole file or index of shards, of `variant`
/// if there is one.
///
/// # Errors
/// Those of [`folder::find`]; [`ErrorKind::Format`](crate::ErrorKind::Format) for shards that are missing and for files
/// that neither torch nor [`from_safetensors`], which looks for itself, reads.
pub fn find_weights(path: &Path, variant: Option<&str>) -> Result<PathBuf> {
    let (weights, files) = if path.is_dir() {
        let weights = folder::find(path, variant, &CONVERTIBLE)?;
        let (files, _) = weight_files(&weights)?;
        (weights, files)
    } else {
        (path.to_owned(), vec![path.to_owned()])
    };
    for file in files {
        let is_safetensors =
            file.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("safetensors"));
        if !is_safetensors {
            screen(&Input::open(&file, None)?, true)?;
        }
    }
    Ok(weights)
}
