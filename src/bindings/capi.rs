//! The C interface of `libflashpack.so`: one call that takes and gives JSON, for programs without torch.

mod arrays;

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::File,
    ops::Deref,
    os::{
        fd::{BorrowedFd, IntoRawFd as _, RawFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    ptr, slice,
};

use serde::Deserialize;
use serde_json::json;

use self::arrays::Array;
use crate::{
    convert,
    error::{Error, ErrorKind, IoContext as _, Result},
    format::{DEFAULT_ALIGN_BYTES, DType, checksum::Algorithm},
    io::{FileSource, temporary::remove_abandoned, write::NewFile},
    jobs::{
        explain::explain,
        load::{Options, Place},
        sign::{PrivateKey, PublicKey, sign},
        verify::verify,
    },
    model::{Model, opened, read_shards, reader::Reader, screen},
    plan::{Ignore, Selection},
    progress::Progress,
    stats::Report,
};

/// A path: its text, or a list of its bytes where they are not UTF-8.
#[derive(Debug, Deserialize)]
#[serde(from = "RawPath")]
struct NativePath(PathBuf);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPath {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<RawPath> for NativePath {
    fn from(raw: RawPath) -> Self {
        Self(match raw {
            RawPath::Text(text) => text.into(),
            RawPath::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

impl Deref for NativePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// What a caller may ask for.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    /// The validated footer's JSON, as it stands in the file.
    Footer { path: NativePath },
    /// The index of a model as the JSON of a footer: a FlashPack file, safetensors, or shards of either.
    Index { path: NativePath },
    /// Which tensor lies in which file, by the index of shards.
    Shards { path: NativePath },
    /// Refuse a file that is not what a conversion reads: safetensors, or with `torch` what torch.load reads.
    Screen { path: NativePath, torch: bool },
    /// Check footer and payload, and that who holds the private half of the key has signed them.
    Verify {
        path: NativePath,
        #[serde(default)]
        key: Option<NativePath>,
    },
    /// Sign a file with a private key.
    Sign { path: NativePath, key: NativePath },
    /// safetensors to FlashPack.
    Convert(ConvertRequest),
    /// Every element type: torch's name, and safetensors' where it has one.
    Dtypes,
    /// Open a model: its number, the bytes of its files, and its index as the JSON of a footer.
    Open { path: NativePath },
    /// Let go of an open model.
    Close { model: i64 },
    /// Fill arrays of the caller's with the records of their names.
    Fill {
        model: i64,
        arrays: Vec<Array>,
        #[serde(default)]
        verify: Option<bool>,
    },
    /// Pack arrays of the caller's into a file.
    Pack {
        path: NativePath,
        arrays: Vec<Array>,
        metadata: BTreeMap<String, String>,
        #[serde(default)]
        checksum: Option<String>,
    },
    /// FlashPack to safetensors.
    Revert { path: NativePath, destination: NativePath },
    /// Begin a file that is to take the place of another in one step: whoever asks gets the descriptor.
    Create { destination: NativePath },
    /// Put what `create` gave in its destination's place; the descriptor stays the caller's.
    Commit { descriptor: RawFd, temporary: Option<NativePath>, destination: NativePath },
    /// Remove what killed writers have left beside the destination.
    Sweep { destination: NativePath },
    /// What a load would do.
    Explain {
        path: NativePath,
        /// To a device, through staging memory.
        staged: bool,
        #[serde(default)]
        names: Option<Vec<String>>,
        #[serde(default)]
        eager: Option<bool>,
        #[serde(default)]
        verify: Option<bool>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConvertRequest {
    sources: Vec<NativePath>,
    destination: NativePath,
    /// What `create` gave for the destination: to be filled, and put in place by `commit`.
    #[serde(default)]
    descriptor: Option<RawFd>,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    align_bytes: Option<u64>,
    #[serde(default)]
    names: Option<HashSet<String>>,
    #[serde(default)]
    ignore_names: Vec<String>,
    #[serde(default)]
    ignore_prefixes: Vec<String>,
    #[serde(default)]
    ignore_suffixes: Vec<String>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    /// Name of the digest function.
    #[serde(default)]
    checksum: Option<String>,
}

impl ConvertRequest {
    fn run(self, begun: Option<&File>, progress: Progress<'_>) -> Result<String> {
        let unknown = |name: String| Error::argument(format!("Unsupported dtype: {name:?}"));
        let dtype =
            self.dtype.map(|name| DType::from_name(&name).ok_or_else(|| unknown(name))).transpose()?;
        let sources: Vec<_> = self.sources.into_iter().map(|source| source.0).collect();
        let request = convert::Request {
            sources: &sources,
            destination: &self.destination,
            begun,
            dtype,
            align_bytes: self.align_bytes.unwrap_or(DEFAULT_ALIGN_BYTES),
            names: self.names.as_ref(),
            ignore: Ignore {
                names: &self.ignore_names,
                prefixes: &self.ignore_prefixes,
                suffixes: &self.ignore_suffixes,
            },
            metadata: self.metadata.unwrap_or_default(),
            algorithm: Algorithm::asked(self.checksum.as_deref())?,
        };
        Ok(converted(convert::from_safetensors(&request, progress)?))
    }
}

/// # Safety
/// As [`flashpack_call`] says of arrays and descriptors.
unsafe fn run(request: Request, progress: Progress<'_>) -> Result<String> {
    match request {
        Request::Dtypes => Ok(json!(dtypes()).to_string()),
        Request::Open { path } => {
            let model = Model::open(&path)?;
            let (bytes, index) = (model.files.file_bytes(), model.footer());
            Ok(format!(r#"{{"model":{},"bytes":{bytes},"index":{index}}}"#, opened::keep(model)))
        }
        Request::Close { model } => {
            opened::close(model);
            Ok(json!(null).to_string())
        }
        Request::Fill { model, arrays, verify } => {
            // SAFETY: the caller vouches for the arrays.
            unsafe { arrays::fill(&*opened::find(model)?, &arrays, verify, progress) }?;
            Ok(json!({"load": Report::last().map(|load| load.to_json())}).to_string())
        }
        Request::Pack { path, arrays, metadata, checksum } => {
            let algorithm = Algorithm::asked(checksum.as_deref())?;
            // SAFETY: the caller vouches for the arrays.
            unsafe { arrays::pack(&path, &arrays, metadata, algorithm, progress) }?;
            Ok(json!(null).to_string())
        }
        Request::Footer { path } => Ok(Reader::open(&path)?.footer().to_owned()),
        Request::Index { path } => Ok(Model::open(&path)?.footer()),
        Request::Shards { path } => Ok(json!(read_shards(&FileSource::open(&path)?)?.weight_map).to_string()),
        Request::Screen { path, torch } => {
            screen(&FileSource::open(&path)?, torch)?;
            Ok(json!(null).to_string())
        }
        Request::Verify { path, key } => {
            let key = key.map(|key| PublicKey::read(&key)).transpose()?;
            let report = verify(&path, key.as_ref(), progress)?;
            Ok(json!({
                "payload_bytes": report.payload_bytes,
                "verified_bytes": report.verified_bytes,
                "algorithm": report.algorithm,
                "signed_by": report.signer.map(|key| key.fingerprint()),
                "load": Report::last().map(|load| load.to_json()),
            })
            .to_string())
        }
        Request::Sign { path, key } => {
            Ok(json!(sign(&path, &PrivateKey::read(&key)?, progress)?.fingerprint()).to_string())
        }
        Request::Convert(request) => {
            // SAFETY: the caller vouches for the descriptor.
            let begun = request.descriptor.map(|it| unsafe { own_file(it, &request.destination) });
            let begun = begun.transpose()?;
            request.run(begun.as_ref(), progress)
        }
        Request::Revert { path, destination } => {
            Ok(converted(convert::to_safetensors(&path, &destination, progress)?))
        }
        Request::Create { destination } => {
            let (file, temporary, destination) = NewFile::create(&destination)?.into_parts();
            let descriptor = file.during("cannot open", &destination)?.into_raw_fd();
            let bytes = |path: PathBuf| path.as_os_str().as_bytes().to_vec();
            let (temporary, destination) = (temporary.map(bytes), bytes(destination));
            Ok(json!({"descriptor": descriptor, "temporary": temporary, "destination": destination})
                .to_string())
        }
        Request::Commit { descriptor, temporary, destination } => {
            // SAFETY: the caller vouches for the descriptor.
            let file = unsafe { own_file(descriptor, &destination) }?;
            let temporary = temporary.map(|path| path.0);
            Ok(json!(NewFile::adopt(file, temporary, destination.0).commit()?).to_string())
        }
        Request::Sweep { destination } => {
            remove_abandoned(&destination);
            Ok(json!(null).to_string())
        }
        Request::Explain { path, staged, names, eager, verify } => {
            let place = if staged { Place::Device } else { Place::Host };
            let everything = Ignore::default();
            let selection = names.as_deref().map_or(Selection::Except(&everything), Selection::Names);
            Ok(explain(&path, selection, Options { eager, verify, place })?.to_string())
        }
    }
}

/// The file that the descriptor stands for, of which errors say `destination`.
///
/// # Safety
/// The descriptor is open until the call returns.
unsafe fn own_file(descriptor: RawFd, destination: &Path) -> Result<File> {
    // SAFETY: as the caller says.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned();
    Ok(File::from(file.during("cannot open", destination)?))
}

fn converted(made: convert::Converted) -> String {
    json!({"tensors": made.tensors, "bytes": made.bytes}).to_string()
}

fn dtypes() -> BTreeMap<&'static str, Option<String>> {
    let counterpart = |dtype: &DType| dtype.to_safetensors().map(|other| other.to_string());
    DType::ALL.iter().map(|dtype| (dtype.name(), counterpart(dtype))).collect()
}

/// # Safety
/// As [`flashpack_call`] says of arrays and descriptors.
unsafe fn answer(request: &[u8], progress: Progress<'_>) -> Result<String> {
    let request: Request = serde_json::from_slice(request)
        .map_err(|error| Error::argument(format!("malformed request: {error}")))?;
    // A panic must not unwind into C; nothing that could be left inconsistent outlives the call.
    // SAFETY: the caller vouches for arrays and descriptors.
    panic::catch_unwind(AssertUnwindSafe(|| unsafe { run(request, progress) }))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "internal error: a panic was caught")))
}

/// Carries out the JSON `request`, whose field `op` names the operation. A path that is not UTF-8 is given as a list
/// of its bytes.
///
/// Returns 0 and the result, or 1 and the text of an [`Error`] with its tag, as UTF-8 in `*reply` and
/// `*reply_len`, to be freed by [`flashpack_free`]. `progress` is null or three words as [`Progress`] describes.
///
/// # Safety
/// `request` points to `request_len` readable bytes; `reply` and `reply_len` are writable; `progress` is null or
/// points to three `i64` that stay valid until the call returns. Each of `arrays` in a request lies at its address, with
/// the bytes that its dtype and shape say; nobody writes to it until the call returns, and one that is filled is the
/// call's alone. The descriptor in a request stays open until the call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flashpack_call(
    request: *const u8,
    request_len: usize,
    progress: *mut i64,
    reply: *mut *mut u8,
    reply_len: *mut usize,
) -> i32 {
    // SAFETY: the caller vouches for the pointer and its lifetime.
    let progress = unsafe { Progress::from_ptr(progress) };
    let request = match request_len {
        0 => &[][..],
        // SAFETY: as above.
        _ => unsafe { slice::from_raw_parts(request, request_len) },
    };
    // SAFETY: the caller vouches for the arrays.
    let (status, text) = match unsafe { answer(request, progress) } {
        Ok(text) => (0, text),
        Err(error) => (1, error.to_tagged_string()),
    };
    let bytes = text.into_bytes().into_boxed_slice();
    // SAFETY: the caller vouches that both are writable.
    unsafe {
        *reply_len = bytes.len();
        *reply = Box::into_raw(bytes).cast();
    }
    status
}

/// Frees a reply of [`flashpack_call`].
///
/// # Safety
/// `reply` and `reply_len` come from one call of [`flashpack_call`] and are freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flashpack_free(reply: *mut u8, reply_len: usize) {
    // SAFETY: this is the box that flashpack_call gave away.
    drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(reply, reply_len)) });
}
