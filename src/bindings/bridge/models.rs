//! Open models, for C++ to hold.

use super::{CxxString, Tagged, ffi::ProgressWords, guarded, native, watched};
use crate::{
    io::Source as _,
    jobs::verify::verify_model,
    model::{Model, opened},
};

/// A model that is open as long as this lives.
pub(super) struct Opened {
    number: i64,
    /// What the tensor shows that stands for it: its number, the bytes of its files, how many these are, and 1 if any is
    /// compressed.
    words: [i64; 4],
}

impl Opened {
    /// What C++ hands over in its place.
    pub(super) fn number(&self) -> i64 {
        self.number
    }

    pub(super) fn words(&self) -> &[i64] {
        &self.words
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        opened::close(self.number);
    }
}

/// Opens the model at `path`; of URLs the folder `cache_dir` keeps a copy, unless its name is empty.
pub(super) fn open_model(
    path: &CxxString,
    cache_dir: &CxxString,
    progress: ProgressWords,
) -> std::result::Result<Box<Opened>, Tagged> {
    watched(progress, |_| {
        let cache = Some(native(cache_dir)).filter(|path| !path.as_os_str().is_empty());
        let model = Model::open_cached(native(path), cache)?;
        let (bytes, count) = (model.files.file_bytes().cast_signed(), model.files.iter().count() as u64);
        let encoded = i64::from(model.files.is_encoded());
        let number = opened::keep(model);
        Ok(Box::new(Opened { number, words: [number, bytes, count.cast_signed(), encoded] }))
    })
}

pub(super) fn footer(model: i64) -> std::result::Result<String, Tagged> {
    guarded(|| Ok(opened::find(model)?.footer()))
}

pub(super) fn verify(model: i64, progress: ProgressWords) -> std::result::Result<i64, Tagged> {
    watched(progress, |progress| {
        let report = verify_model(&*opened::find(model)?, None, progress)?;
        Ok(report.verified_bytes.cast_signed())
    })
}
