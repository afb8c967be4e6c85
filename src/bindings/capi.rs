//! The C interface of `libflashpack.so`: one call that takes and gives JSON, for programs without torch.

mod arrays;
mod facts;
mod files;
mod listing;
mod ranks;

use std::{
    collections::{BTreeMap, BTreeSet},
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
use serde_json::{Value, json};

use self::{
    arrays::Array,
    facts::MeasureRequest,
    files::{ConvertRequest, RecodeRequest, RepackRequest},
    ranks::RanksRequest,
};
use crate::{
    error::{Error, ErrorKind, IoContext as _, Result},
    io::{Input, write::NewFile},
    jobs::{
        compare::compare,
        convert,
        copy::copy,
        explain::explain,
        load::{Options, Place},
        sign::{PrivateKey, PublicKey, sign},
        verify::verify,
    },
    model::{Model, expect_flashpack, folder, opened, read_shards, reader::Reader},
    plan::{Ignore, Selection},
    progress::Progress,
    remote::{self, Entry},
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
    /// The files and tensors of a model.
    Tensors { path: NativePath },
    /// What differs between two models.
    Compare { path: NativePath, other: NativePath },
    /// Which tensor lies in which file, by the index of shards.
    Shards { path: NativePath },
    /// The file that a load of the path opens, or those of a list.
    Resolve { path: NativePath },
    /// The weights in a folder, of the first of these kinds: a file, or the index of shards.
    Find { path: NativePath, variant: Option<String>, kinds: Vec<String> },
    /// The objects in the folder that a URL names; if `deep` those below it, too.
    List { path: NativePath, deep: bool },
    /// Copy a file or an object to a file.
    Copy { path: NativePath, destination: NativePath },
    /// The weights that a conversion reads.
    Source { path: NativePath, variant: Option<String> },
    /// The names of all tensors of safetensors, by a file or an index of shards.
    Names { path: NativePath },
    /// Check footer and payload, and that who holds the private half of the key has signed them.
    Verify {
        path: NativePath,
        #[serde(default)]
        key: Option<NativePath>,
    },
    /// Sign a file with a private key.
    Sign { path: NativePath, key: NativePath },
    /// safetensors to FlashPack; null if a cast is to be made that only torch makes.
    Convert(ConvertRequest),
    /// The same FlashPack file, its payload stored in another way.
    Recode(RecodeRequest),
    /// Tensors of open models to FlashPack; null as above.
    Repack(RepackRequest),
    /// Every element type by torch's name: safetensors' name where it has one, bytes, whether it is of floating numbers
    /// that can be cast, and whether conversions cast it.
    Dtypes,
    /// What the environment variables that Python asks for say.
    Environment,
    /// Open a model: its number, the bytes of its files, what decodes them if all are compressed, and its index as the
    /// JSON of a footer.
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
        #[serde(default)]
        compress: Option<String>,
    },
    /// Refuse a model that is not FlashPack.
    Expect { path: NativePath },
    /// FlashPack to safetensors.
    Revert { path: NativePath, destination: NativePath },
    /// Begin a file that is to take the place of another in one step: whoever asks gets the descriptor.
    Create { destination: NativePath },
    /// Put what `create` gave in its destination's place; the descriptor stays the caller's.
    Commit(CommitRequest),
    /// How long reading or copying takes.
    Measure(MeasureRequest),
    /// Which rank reads what of a load by several.
    Ranks(RanksRequest),
    /// What a load would do.
    Explain(ExplainRequest),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainRequest {
    path: NativePath,
    /// Where to, as torch calls it: to CUDA through staging memory.
    device: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    eager: Option<bool>,
    #[serde(default)]
    verify: Option<bool>,
}

impl ExplainRequest {
    fn run(self) -> Result<Value> {
        let place = if self.device.starts_with("cuda") { Place::Device } else { Place::Host };
        let everything = Ignore::default();
        let selection = self.names.as_deref().map_or(Selection::Except(&everything), Selection::Names);
        let options = Options { eager: self.eager, verify: self.verify, place };
        let told = explain(&self.path, &self.device, selection, options)?;
        Ok(json!({"text": told.to_string(), "facts": told}))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitRequest {
    descriptor: RawFd,
    temporary: Option<NativePath>,
    destination: NativePath,
}

/// Puts the file that the descriptor stands for in its destination's place.
///
/// # Safety
/// The descriptor is open until the call returns.
unsafe fn commit(request: CommitRequest) -> Result<u64> {
    let CommitRequest { descriptor, temporary, destination } = request;
    // SAFETY: as the caller says.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned();
    let file = File::from(file.during("cannot open", &destination)?);
    NewFile::adopt(file, temporary.map(|path| path.0), destination.0).commit()
}

/// # Safety
/// As [`flashpack_call`] says of arrays and descriptors.
unsafe fn run(request: Request, progress: Progress<'_>) -> Result<String> {
    let reply = match request {
        Request::Footer { path } => return Ok(Reader::new(Input::open(&path, None)?)?.footer().to_owned()),
        Request::Index { path } => return Ok(Model::open(&path)?.footer()),
        Request::Tensors { path } => return listing::tensors(&path),
        Request::Open { path } => return open(&path),
        Request::Close { model } => close(model),
        // SAFETY: the caller vouches for the arrays.
        Request::Fill { model, arrays, verify } => unsafe { fill(model, &arrays, verify, progress) }?,
        Request::Pack { path, arrays, metadata, checksum, compress } => {
            let words = (checksum.as_deref(), compress.as_deref());
            // SAFETY: as above.
            json!(unsafe { arrays::pack(&path, &arrays, metadata, words, progress) }?)
        }
        Request::Dtypes => facts::dtypes(),
        Request::Environment => facts::environment()?,
        Request::Shards { path } => json!(read_shards(&Input::open(&path, None)?)?.weight_map),
        Request::Resolve { path } => native(&folder::resolve(&path)?),
        Request::Find { path, variant, kinds } => find(&path, variant.as_deref(), &kinds)?,
        Request::List { path, deep } => json!(list(&path, deep)?),
        Request::Copy { path, destination } => json!(copy(&path, &destination, progress)?),
        Request::Source { path, variant } => native(&convert::find_weights(&path, variant.as_deref())?),
        Request::Names { path } => json!(convert::tensor_names(&path)?),
        Request::Expect { path } => json!(expect_flashpack(&Model::open(&path)?)?),
        Request::Verify { path, key } => verified(&path, key, progress)?,
        Request::Sign { path, key } => json!(sign(&path, &PrivateKey::read(&key)?, progress)?.fingerprint()),
        Request::Convert(request) => request.run(progress)?,
        Request::Recode(request) => request.run(progress)?,
        Request::Repack(request) => request.run(progress)?,
        Request::Compare { path, other } => json!(compare(&path, &other, progress)?),
        Request::Revert { path, destination } => files::revert(&path, &destination, progress)?,
        Request::Create { destination } => create(&destination)?,
        // SAFETY: the caller vouches for the descriptor.
        Request::Commit(request) => json!(unsafe { commit(request) }?),
        Request::Measure(request) => json!(request.seconds()?),
        Request::Ranks(request) => request.run()?,
        Request::Explain(request) => request.run()?,
    };
    Ok(reply.to_string())
}

fn open(path: &Path) -> Result<String> {
    let model = Model::open(path)?;
    let (bytes, index, codecs) = (model.files.file_bytes(), model.footer(), json!(codecs(&model)));
    let model = opened::keep(model);
    Ok(format!(r#"{{"model":{model},"bytes":{bytes},"codecs":{codecs},"index":{index}}}"#))
}

/// What decodes the chunks of a model; `None` unless all of its files are compressed.
fn codecs(model: &Model) -> Option<BTreeSet<&'static str>> {
    let encodings = model.index.parts().iter().map(|part| part.encoding()).collect::<Option<Vec<_>>>()?;
    Some(encodings.iter().flat_map(|encoding| encoding.codecs().into_keys()).collect())
}

fn close(model: i64) -> Value {
    opened::close(model);
    Value::Null
}

fn find(folder: &Path, variant: Option<&str>, kinds: &[String]) -> Result<Value> {
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let found = match remote::url(folder) {
        Some(url) => folder::find_url(url, variant, &kinds)?,
        None => folder::find(folder, variant, &kinds)?,
    };
    Ok(native(&found))
}

fn list(folder: &Path, deep: bool) -> Result<Vec<Entry>> {
    let url = remote::url(folder).ok_or_else(|| Error::argument("is no URL").at(folder))?;
    remote::stores()?.list(url, deep)
}

/// # Safety
/// As [`flashpack_call`] says of arrays.
unsafe fn fill(model: i64, arrays: &[Array], verify: Option<bool>, progress: Progress<'_>) -> Result<Value> {
    // SAFETY: the caller vouches for the arrays.
    unsafe { arrays::fill(&*opened::find(model)?, arrays, verify, progress) }?;
    Ok(json!({"load": Report::last().map(|load| load.to_json())}))
}

fn verified(path: &Path, key: Option<NativePath>, progress: Progress<'_>) -> Result<Value> {
    let key = key.map(|key| PublicKey::read(&key)).transpose()?;
    let report = verify(path, key.as_ref(), progress)?;
    Ok(json!({
        "payload_bytes": report.payload_bytes,
        "verified_bytes": report.verified_bytes,
        "algorithm": report.algorithm,
        "signed_by": report.signer.map(|key| key.fingerprint()),
        "load": Report::last().map(|load| load.to_json()),
    }))
}

fn create(destination: &Path) -> Result<Value> {
    let (file, temporary, destination) = NewFile::create(destination)?.into_parts();
    let descriptor = file.during("cannot open", &destination)?.into_raw_fd();
    let (temporary, destination) = (temporary.as_deref().map(native), native(&destination));
    Ok(json!({"descriptor": descriptor, "temporary": temporary, "destination": destination}))
}

/// A path as [`NativePath`] reads it.
fn native(path: &Path) -> Value {
    path.to_str().map_or_else(|| path.as_os_str().as_bytes().into(), Value::from)
}

/// # Safety
/// As [`flashpack_call`] says of arrays and descriptors.
unsafe fn answer(request: &[u8], progress: Progress<'_>) -> Result<String> {
    let request: Request = serde_json::from_slice(request)
        .map_err(|error| Error::argument(format!("malformed request: {error}")))?;
    // A panic must not unwind into C; nothing that could be left inconsistent outlives the call.
    // SAFETY: the caller vouches for arrays and descriptors.
    panic::catch_unwind(AssertUnwindSafe(|| progress.watch(|| unsafe { run(request, progress) })))
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
