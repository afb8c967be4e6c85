//! safetensors files: whatever its own library reads becomes a FlashPack file of the same tensors and comes back as it
//! was; whatever it refuses is refused here, too.
#![no_main]

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, sync::OnceLock};

use flashpack::{
    ErrorKind, Progress, Result,
    convert::{self, Request},
    format::{DType, checksum::Algorithm},
    plan::Ignore,
};
use flashpack_fuzz::Wish;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use tempfile::TempDir;

const CASTS: [Option<DType>; 4] =
    [None, Some(DType::Float32), Some(DType::Bfloat16), Some(DType::Float8E8m0fnu)];

/// A folder in memory, where the system has one.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let create =
        || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("room for files");
    FOLDER.get_or_init(create).path()
}

fuzz_target!(|data: &[u8]| {
    let Some((wish, bytes)) = Wish::split(data) else {
        return;
    };
    let [source, made, back] =
        ["in.safetensors", "made.flashpack", "back.safetensors"].map(|name| folder().join(name));
    fs::write(&source, bytes).unwrap();
    let cast = CASTS[usize::from(wish.cast) % CASTS.len()];
    let outcome = import(source, &made, cast);
    let Ok(theirs) = SafeTensors::deserialize(bytes) else {
        // A file that holds more than its header says is damaged to us, too.
        let kind = outcome.unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Format);
        return;
    };
    match outcome {
        Ok(()) if cast.is_none() => {
            convert::to_safetensors(&made, &back, Progress::SILENT).unwrap();
            let back = fs::read(&back).unwrap();
            assert_eq!(tensors(&SafeTensors::deserialize(&back).unwrap()), tensors(&theirs));
        }
        Ok(()) => {}
        // Types without a counterpart, and files without tensors.
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Unsupported) || theirs.is_empty(), "{error}"),
    }
});

fn import(source: PathBuf, made: &Path, dtype: Option<DType>) -> Result<()> {
    let request = Request {
        sources: &[source],
        promised: None,
        destination: made,
        dtype,
        align_bytes: 128,
        algorithm: Algorithm::Xxh3,
        shard_bytes: None,
        compress: None,
        ignore: Ignore::default(),
    };
    convert::from_safetensors(&request, Progress::SILENT).map(drop)
}

fn tensors(file: &SafeTensors<'_>) -> BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let parts = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(parts).collect()
}
