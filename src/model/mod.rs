//! What a path or URL stands for: a FlashPack file, a safetensors file, or several of them that are one model.

pub mod folder;
#[cfg(any(feature = "capi", feature = "torch"))]
pub(crate) mod opened;
pub(crate) mod reader;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{At, Error, Result, zeroed},
    format::{
        Index, MAGIC, MAX_FOOTER_BYTES, Seal, footer,
        foreign::{self, Foreign},
        safetensors::{self, Header},
        shards::Shards,
    },
    io::{Files, Input, Pages, RemoteFile, Source, file::Shelf, read::in_parallel},
    model::reader::{Reader, recognise},
    numa::{Node, Nodes},
    os, remote,
};

/// Threads that open the files of a model: each file takes a latency where storage makes readers wait.
const MAX_OPENING_THREADS: usize = 64;

/// Between the paths of a list of files: no path holds it.
pub const SEPARATOR: char = '\0';

/// An open model: its files, and one index of all their tensors. What takes their paths meanwhile does not matter.
#[derive(Debug)]
pub struct Model {
    /// The files.
    pub files: Files,
    /// Their tensors.
    pub index: Arc<Index>,
    /// The seal of each file.
    pub seals: Vec<Seal>,
    /// The footer of a FlashPack file as it stands there.
    footer: Option<String>,
    /// The NUMA node of the thread that opened it. The thread that loads is often one that Python started for that, which
    /// the kernel puts anywhere.
    pub(crate) node: Option<Node>,
    opening_nanoseconds: AtomicU64,
}

/// What a file is, told by its content.
enum Kind {
    FlashPack,
    Safetensors,
    Shards,
    /// None of these: opened as a FlashPack file, which says what is wrong with it.
    Other,
}

impl Model {
    /// Opens the model at `path`: a file, a folder, the index of shards (as model hubs have it) beside them or the name
    /// they were saved under, or a list of files with [`SEPARATOR`] between them; each may be a URL.
    ///
    /// # Errors
    /// Those of [`folder::find`],
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format) for files that are not
    /// sound or do not belong together, [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a type of
    /// safetensors that has no counterpart.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_cached(path, None)
    }

    /// [`Model::open`]; of what is read of URLs the folder `cache` keeps a copy. Without, `FLASHPACK_CACHE` says where.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_cached(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let began = Instant::now();
        let mut model = Self::open_untimed(path, cache)?;
        *model.opening_nanoseconds.get_mut() = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(model)
    }

    fn open_untimed(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let paths = os::split_at_zeros(path);
        if paths.len() > 1 {
            let labels = paths.iter().map(|path| remote::label(path).display().to_string());
            let label =
                PathBuf::from(format!("{} and {} more", remote::label(&paths[0]).display(), paths.len() - 1));
            let files = open_files(&paths, cache)?;
            return Self::join(&label, labels, files, None);
        }
        let (path, file) = open_weights(path, cache)?;
        match kind(&file)? {
            Kind::Shards => Self::open_shards(&path, &file, cache),
            kind => {
                let (file, index, footer) = open_as(&kind, file)?;
                let seals = vec![index.seal()];
                Ok(Self::new(Files::new(&remote::label(&path), vec![file], &index), index, seals, footer))
            }
        }
    }

    fn open_shards(path: &Path, index: &Input, cache: Option<&Path>) -> Result<Self> {
        let shards = read_shards(index)?;
        // Only then: a look at each would take as long as to open it.
        let files = open_files(&paths_of(&shards, path, index), cache)
            .map_err(|error| missing(&shards, path).unwrap_or(error))?;
        Self::join(&remote::label(path), shards.files().iter().map(ToString::to_string), files, Some(&shards))
    }

    fn join(
        path: &Path,
        labels: impl Iterator<Item = String>,
        opened: Vec<(Input, Index)>,
        shards: Option<&Shards>,
    ) -> Result<Self> {
        let (files, indices): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let seals = indices.iter().map(Index::seal).collect();
        let indices: Vec<_> = labels.zip(indices).collect();
        if let Some(shards) = shards {
            shards.check(&indices).at(path)?;
        }
        let index = Index::join(indices, Pages::here().bytes as u64).at(path)?;
        Ok(Self::new(Files::new(path, files, &index), index, seals, None))
    }

    fn new(files: Files, index: Index, seals: Vec<Seal>, footer: Option<String>) -> Self {
        let node = Nodes::here().of_caller();
        Self { files, index: index.into(), seals, footer, node, opening_nanoseconds: AtomicU64::new(0) }
    }

    /// How long opening took; nothing for who asks again, so that only the first load counts it.
    pub(crate) fn take_opening_time(&self) -> Duration {
        Duration::from_nanos(self.opening_nanoseconds.swap(0, Ordering::Relaxed))
    }

    /// The index as the JSON of a footer: a FlashPack file's own.
    #[must_use]
    pub fn footer(&self) -> String {
        self.footer.clone().unwrap_or_else(|| footer::render(&self.index))
    }
}

/// Refuses a model with files of another format.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format).
pub fn expect_flashpack(model: &Model) -> Result<()> {
    model.files.iter().try_for_each(|(file, _)| reader::expect_flashpack(file))
}

/// Opens what a load opens for `path`, and says where it lies.
fn open_weights(path: &Path, cache: Option<&Path>) -> Result<(PathBuf, Input)> {
    let open = |path: PathBuf| Input::open(&path, cache).map(|file| (path, file));
    let Some(url) = remote::url(path) else {
        return open(folder::resolve(path)?);
    };
    if remote::names_folder(url) {
        return open(folder::find_url(url, None, &folder::LOADABLE)?);
    }
    open(path.to_owned()).or_else(|error| {
        if !error.is_not_found() {
            return Err(error);
        }
        let found =
            open(folder::index_path(path)).or_else(|_| open(folder::find_url(url, None, &folder::LOADABLE)?));
        found.map_err(|_| error)
    })
}

/// Opens all of `paths`; if they are many, only some of them stay open.
fn open_files(paths: &[PathBuf], cache: Option<&Path>) -> Result<Vec<(Input, Index)>> {
    let shelf = Shelf::for_files(paths.len());
    let open = |path: &PathBuf| {
        let (file, index) = open_file(path, cache)?;
        Ok((file.on_shelf(shelf.as_ref()), index))
    };
    in_parallel(paths, MAX_OPENING_THREADS, open)?.into_iter().collect()
}

/// The weight files behind `path`: itself, or what it lists if it is named as an index of shards.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format) for what is no index, and
/// if shards are missing.
pub fn weight_files(path: &Path) -> Result<(Vec<PathBuf>, Option<Shards>)> {
    if remote::label(path).extension() != Some(OsStr::new("json")) {
        return Ok((vec![path.to_owned()], None));
    }
    let index = Input::open(path, None)?;
    let shards = read_shards(&index)?;
    match missing(&shards, path) {
        Some(error) => Err(error),
        None => Ok((paths_of(&shards, path, &index), Some(shards))),
    }
}

/// The files that the `index` at `path` lists, sorted; where versions have URLs, of the version that `index` is of.
fn paths_of(shards: &Shards, path: &Path, index: &Input) -> Vec<PathBuf> {
    let pinned = index.remote().and_then(RemoteFile::pinned);
    let beside = |name: &&str| match pinned.as_deref().or_else(|| remote::url(path)) {
        Some(url) => remote::beside(url, name).into(),
        None => path.with_file_name(name),
    };
    shards.files().iter().map(beside).collect()
}

/// The error of an index at `path` that lists files which are not there; none if they all are.
fn missing(shards: &Shards, path: &Path) -> Option<Error> {
    if remote::url(path).is_some() {
        return None; // opening says it of each
    }
    let names = shards.files();
    let missing: Vec<_> = names.iter().filter(|name| !path.with_file_name(name).exists()).collect();
    let what = || format!("{} of {} shards are missing: {missing:?}", missing.len(), names.len());
    (!missing.is_empty()).then(|| Error::format(what()).at(path))
}

fn open_file(path: &Path, cache: Option<&Path>) -> Result<(Input, Index)> {
    let file = Input::open(path, cache)?;
    match kind(&file)? {
        Kind::Shards => Err(Error::format("is an index of shards, not a file with weights").at(file.path())),
        kind => open_as(&kind, file).map(|(file, index, _)| (file, index)),
    }
}

fn open_as(kind: &Kind, file: Input) -> Result<(Input, Index, Option<String>)> {
    if let Kind::Safetensors = kind {
        let index = read_header(&file)?.into_index().at(file.path())?;
        return Ok((file, index, None));
    }
    let (file, index, footer) = Reader::new(file)?.into_parts();
    Ok((file, index, Some(footer)))
}

/// Reads the index of shards.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format).
pub fn read_shards(file: &Input) -> Result<Shards> {
    if file.len() > MAX_FOOTER_BYTES {
        let what = format!("not a valid index: {} bytes, over the limit of {MAX_FOOTER_BYTES}", file.len());
        return Err(Error::format(what).at(file.path()));
    }
    let mut json = zeroed(file.len()).at(file.path())?;
    file.read_exact_at(&mut json, 0)?;
    let parsed = Shards::parse(&json);
    if parsed.is_err()
        && !is_named(file, ".json")
        && let Some(foreign) = recognise(file)?
    {
        return Err(Error::format(format!("holds no weights: it is {}", foreign.what)).at(file.path()));
    }
    parsed.at(file.path())
}

/// Refuses a file that a conversion cannot read as what it takes it for: safetensors, or what torch.load reads.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format).
pub fn screen(file: &Input, torch: bool) -> Result<()> {
    let what = match kind(file)? {
        Kind::FlashPack => "already a FlashPack file".to_owned(),
        Kind::Safetensors if torch => {
            "a safetensors file: give it a name that ends in .safetensors".to_owned()
        }
        Kind::Shards if read_shards(file).is_ok() => {
            "an index of shards: convert the folder that it lies in".to_owned()
        }
        Kind::Safetensors => return Ok(()),
        Kind::Shards | Kind::Other => match recognise(file)? {
            Some(it) if !(torch && it.reader == foreign::Reader::Torch) => it.what,
            _ => return Ok(()),
        },
    };
    Err(Error::format(format!("is {what}")).at(file.path()))
}

/// Reads the header of a safetensors file.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format).
pub fn read_header(file: &Input) -> Result<Header> {
    parse_header(file)
        .or_else(|error| match recognise(file)? {
            Some(Foreign { what, reader }) if reader != foreign::Reader::Safetensors => {
                Err(safetensors::damaged(&format!("it is {what}")))
            }
            _ => Err(error),
        })
        .at(file.path())
}

fn parse_header(file: &Input) -> Result<Header> {
    let mut prefix = [0; safetensors::PREFIX_BYTES];
    if file.len() < prefix.len() as u64 {
        return Err(safetensors::too_short(file.len()));
    }
    file.read_exact_at(&mut prefix, 0)?;
    let mut json = zeroed(safetensors::header_bytes(prefix, file.len())?)?;
    file.read_exact_at(&mut json, prefix.len() as u64)?;
    Header::parse(&json, file.len())
}

/// Tells the formats apart: by content, and a file whose content is none of them by its name.
fn kind(file: &Input) -> Result<Kind> {
    reader::expect_tail(file);
    let mut tail = [0; MAGIC.len()];
    if let Some(offset) = file.len().checked_sub(tail.len() as u64) {
        file.read_exact_at(&mut tail, offset)?;
        if tail == MAGIC {
            return Ok(Kind::FlashPack);
        }
    }
    let mut start = [0; safetensors::PREFIX_BYTES + 1];
    let bytes = usize::try_from(file.len()).map_or(start.len(), |len| len.min(start.len()));
    file.read_exact_at(&mut start[..bytes], 0)?;
    Ok(if safetensors::claims(&start[..bytes], file.len()) || is_named(file, ".safetensors") {
        Kind::Safetensors
    } else if start[..bytes].trim_ascii_start().first() == Some(&b'{') || is_named(file, ".json") {
        Kind::Shards
    } else {
        Kind::Other
    })
}

fn is_named(file: &Input, suffix: &str) -> bool {
    file.path().as_os_str().as_encoded_bytes().ends_with(suffix.as_bytes())
}
