//! Saves of a model as one file or, of a bounded size, as several and their index, which appear together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};

use crate::{
    error::{At as _, Error, IoContext as _, Result},
    format::{
        checksum::Algorithm,
        join::SET_KEY,
        layout::{Layout, Order, TensorSpec},
        shards::Shards,
    },
    io::{
        temporary::{TemporaryFolder, folder_of, remove_abandoned},
        write::{NewFile, flush_folder, refuse_irregular},
    },
    jobs::pack::Packer,
    model::folder::index_path,
    progress::Progress,
};

/// What to write, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file, or what shards are saved as.
    pub destination: PathBuf,
    /// Order of the tensors in each file.
    pub order: Order,
    /// Alignment of records.
    pub align_bytes: u64,
    /// Strings for each footer.
    pub metadata: BTreeMap<String, String>,
    /// The checksum algorithm.
    pub algorithm: Algorithm,
    /// Bytes of tensors in a file, unless one alone has more; `None` makes one file.
    pub shard_bytes: Option<u64>,
}

/// A save in the making. Its caller provides the bytes of each tensor of [`order`](Self::order), in that order.
///
/// Until all files are written, what was at the destination stays. Then the shards are put in place, then their index;
/// both name their save, so that a load refuses a mixture of two. Then the files of earlier saves go.
pub struct Save<'a> {
    request: Request,
    progress: Progress<'a>,
    order: Vec<usize>,
    packer: Packer<'a>,
    waiting: VecDeque<(PathBuf, Layout)>,
    /// `None` for one file.
    set: Option<Set>,
}

impl<'a> Save<'a> {
    /// Plans the save of `tensors`, and begins it.
    ///
    /// # Errors
    /// Those of [`Packer::create`]; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for shards of a name that is not
    /// UTF-8.
    pub fn begin(tensors: &[TensorSpec], request: Request, progress: Progress<'a>) -> Result<Self> {
        let Request { ref destination, order, align_bytes, ref metadata, .. } = request;
        let whole = Layout::new(tensors, order, align_bytes, metadata.clone())?;
        let parts = split(tensors, request.shard_bytes.unwrap_or(u64::MAX));
        let mut waiting = VecDeque::new();
        let mut sequence = Vec::new();
        let mut set = None;
        if parts.len() == 1 {
            sequence.extend(whole.writes().iter().map(|write| write.tensor));
            waiting.push_back((destination.to_owned(), whole));
        } else {
            let new = Set::begin(destination, tensors, &parts)?;
            let metadata = || {
                let own = (SET_KEY.to_owned(), new.name.clone());
                metadata.clone().into_iter().chain([own]).collect::<BTreeMap<_, _>>()
            };
            for (part, place) in parts.iter().zip(&new.places) {
                let layout = Layout::new(&specs_of(tensors, part), order, align_bytes, metadata())?;
                sequence.extend(layout.writes().iter().map(|write| part[write.tensor]));
                waiting.push_back((new.stage.path_of(place), layout));
            }
            set = Some(new);
        }
        progress.start(waiting.iter().map(|(_, layout)| layout.payload_bytes()).sum());
        let (path, layout) = waiting.pop_front().expect("a layout has tensors");
        let packer = Packer::begin(&path, layout, progress)?.digested_by(request.algorithm);
        Ok(Self { request, progress, order: sequence, packer, waiting, set })
    }

    /// Numbers of the tensors whose bytes are wanted. Tied tensors appear once, tensors without elements never.
    #[must_use]
    pub fn order(&self) -> &Vec<usize> {
        &self.order
    }

    /// Takes the next bytes: those of a tensor, or a part of them.
    ///
    /// # Errors
    /// As [`Packer::write`] and [`Packer::complete`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.packer.is_complete() && !self.waiting.is_empty() {
            self.next_file()?;
        }
        self.packer.write(bytes)
    }

    /// Puts everything in place, and sweeps what earlier saves have left; returns the bytes of all files.
    ///
    /// # Errors
    /// As [`Packer::finish`]. What was at the destination is then still there, unless putting the new in place failed.
    pub fn finish(mut self) -> Result<u64> {
        while !self.waiting.is_empty() {
            self.next_file()?;
        }
        let destination = &self.request.destination;
        let Some(mut set) = self.set else {
            let bytes = self.packer.finish()?;
            if self.request.shard_bytes.is_some() {
                remove(&index_path(destination))?;
                sweep(destination, &[])?;
            }
            return Ok(bytes);
        };
        set.take(self.packer)?;
        let (bytes, places) = (set.bytes, set.places.clone());
        set.put_in_place()?;
        remove(destination)?;
        sweep(destination, &places)?;
        Ok(bytes)
    }

    fn next_file(&mut self) -> Result<()> {
        let (path, layout) = self.waiting.pop_front().expect("the caller has looked");
        let next = Packer::begin(&path, layout, self.progress)?.digested_by(self.request.algorithm);
        let done = std::mem::replace(&mut self.packer, next);
        self.set.as_mut().expect("several files are a set").take(done)
    }
}

/// The tensors of each file, in order: as many as fit in `limit` bytes, but at least one. Tied tensors stay together.
fn split(tensors: &[TensorSpec], limit: u64) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = vec![vec![]];
    let mut home: Vec<usize> = Vec::with_capacity(tensors.len());
    let mut filled = 0_u64;
    for (number, tensor) in tensors.iter().enumerate() {
        let bytes = bytes_of(tensor);
        let tied = tensor.tied_to.map(|other| home[other]);
        if tied.is_none() {
            if number > 0 && filled.saturating_add(bytes) > limit {
                parts.push(vec![]);
                filled = 0;
            }
            filled = filled.saturating_add(bytes);
        }
        let part = tied.unwrap_or(parts.len() - 1);
        home.push(part);
        parts[part].push(number);
    }
    parts
}

fn bytes_of(tensor: &TensorSpec) -> u64 {
    tensor.shape.iter().fold(tensor.dtype.size(), |bytes, &size| bytes.saturating_mul(size))
}

/// The tensors of one file, tied to each other by their numbers in it.
fn specs_of(tensors: &[TensorSpec], part: &[usize]) -> Vec<TensorSpec> {
    let within = |tensor: usize| part.binary_search(&tensor).expect("tied tensors are in one file");
    let spec = |&tensor: &usize| {
        let spec = tensors[tensor].clone();
        TensorSpec { tied_to: spec.tied_to.map(within), ..spec }
    };
    part.iter().map(spec).collect()
}

/// Shards on their way.
struct Set {
    /// What its shards have in common.
    name: String,
    /// Where the shards go.
    places: Vec<PathBuf>,
    index: NewFile,
    stage: Stage,
    bytes: u64,
}

/// Where shards are until all are written.
enum Stage {
    /// They have no names, so that nothing stays of a writer that is killed.
    Nameless(Vec<NewFile>),
    /// Where the file system needs names, or they are more than a process should hold open, they lie in a folder that
    /// the next save sweeps.
    Folder(TemporaryFolder),
}

impl Set {
    fn begin(destination: &Path, tensors: &[TensorSpec], parts: &[Vec<usize>]) -> Result<Self> {
        refuse_irregular(destination)?;
        let names = names_of(destination, parts.len()).at(destination)?;
        let name = format!("{:016x}", RandomState::new().build_hasher().finish());
        let weight_map = parts.iter().zip(&names);
        let weight_map = weight_map
            .flat_map(|(part, name)| part.iter().map(|&number| (tensors[number].name.clone(), name.clone())))
            .collect();
        let untied = tensors.iter().filter(|tensor| tensor.tied_to.is_none());
        let total_bytes = untied.map(bytes_of).sum();
        let mut index = NewFile::create(&index_path(destination))?;
        index.write(Shards { weight_map, set: Some(name.clone()) }.render(total_bytes).as_bytes())?;
        remove_abandoned(destination);
        let stage = if index.has_name() || are_many(parts.len()) {
            let beside = TemporaryFolder::beside(destination);
            Stage::Folder(beside.during("cannot create a temporary folder in its folder", destination)?)
        } else {
            Stage::Nameless(vec![])
        };
        let places = names.iter().map(|name| destination.with_file_name(name)).collect();
        Ok(Self { name, places, index, stage, bytes: 0 })
    }

    /// Takes a file that has all its bytes.
    fn take(&mut self, packer: Packer<'_>) -> Result<()> {
        let file = packer.complete()?;
        self.bytes += match &mut self.stage {
            Stage::Folder(_) => file.commit()?,
            Stage::Nameless(files) => {
                let bytes = file.make_durable()?;
                files.push(file);
                bytes
            }
        };
        Ok(())
    }

    fn put_in_place(self) -> Result<()> {
        self.index.make_durable()?;
        match self.stage {
            Stage::Nameless(files) => put_files_in_place(files)?,
            Stage::Folder(ref folder) => {
                for place in &self.places {
                    let from = self.stage.path_of(place);
                    fs::rename(from, place).during("cannot put the new file in place of", place)?;
                }
                flush_folder(folder_of(folder.path()))?;
            }
        }
        self.index.commit().map(drop)
    }
}

impl Stage {
    /// Where the shard for `place` is written.
    fn path_of(&self, place: &Path) -> PathBuf {
        match self {
            Self::Nameless(_) => place.to_owned(),
            Self::Folder(folder) => folder.path().join(place.file_name().expect("places are files")),
        }
    }
}

/// What has the shards' names goes first: to replace it would take temporary names.
fn put_files_in_place(files: Vec<NewFile>) -> Result<()> {
    let mut folders = BTreeSet::new();
    for mut file in files {
        let _ = fs::remove_file(file.destination());
        file.put_in_place()?;
        folders.insert(folder_of(file.destination()).to_owned());
    }
    folders.iter().try_for_each(|folder| flush_folder(folder))
}

/// Whether these are more files than a process should hold open.
fn are_many(files: usize) -> bool {
    getrlimit(Resource::Nofile).current.is_some_and(|limit| files as u64 > limit / 4)
}

/// What is before and after the number in the names of shards.
fn stem_and_suffix(destination: &Path) -> Option<(&str, String)> {
    let stem = destination.file_stem()?.to_str()?;
    let suffix = destination.extension().map(|suffix| suffix.to_str().map(|it| format!(".{it}")));
    Some((stem, suffix.unwrap_or(Some(String::new()))?))
}

/// The names of so many shards.
fn names_of(destination: &Path, count: usize) -> Result<Vec<String>> {
    let (stem, suffix) = stem_and_suffix(destination).ok_or_else(|| {
        Error::argument("is not UTF-8, as the names of shards must be: the index lists them")
    })?;
    Ok((1..=count).map(|number| format!("{stem}-{number:05}-of-{count:05}{suffix}")).collect())
}

/// Removes the shards of earlier saves but those to `keep`, and what killed ones have left of their indices.
fn sweep(destination: &Path, keep: &[PathBuf]) -> Result<()> {
    remove_abandoned(&index_path(destination));
    let Some((stem, suffix)) = stem_and_suffix(destination) else {
        return Ok(()); // it never had shards
    };
    let folder = folder_of(destination);
    for entry in fs::read_dir(folder).during("cannot read", folder)? {
        let name = entry.during("cannot read", folder)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(stem)?.strip_suffix(suffix.as_str()));
        let path = destination.with_file_name(&name);
        if number.is_some_and(is_number) && !keep.contains(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Whether the text is that of `-00001-of-00002`, with any digits.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.strip_prefix('-').and_then(|text| text.split_once("-of-"));
    parts.is_some_and(|(number, count)| digits(number) && digits(count))
}

/// Removes a file if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during("cannot remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DType;

    fn bytes(sizes: &[u64]) -> Vec<TensorSpec> {
        let spec = |(number, &size): (usize, &u64)| TensorSpec {
            name: number.to_string(),
            dtype: DType::Uint8,
            shape: vec![size],
            tied_to: None,
        };
        sizes.iter().enumerate().map(spec).collect()
    }

    #[test]
    fn a_file_has_at_least_one_tensor_and_tied_ones_stay_together() {
        let mut tensors = bytes(&[5, 50, 1, 9, 1]);
        assert_eq!(split(&tensors, 10), [vec![0], vec![1], vec![2, 3], vec![4]]);
        tensors[4].tied_to = Some(0);
        assert_eq!(split(&tensors, 10), [vec![0, 4], vec![1], vec![2, 3]]);
        assert_eq!(specs_of(&tensors, &[0, 4])[1].tied_to, Some(0));
        tensors[4].tied_to = Some(2);
        assert_eq!(specs_of(&tensors, &[2, 3, 4])[2].tied_to, Some(0));
        assert_eq!(split(&bytes(&[50, 0, u64::MAX, 1]), 10), [[0], [1], [2], [3]]);
        assert_eq!(split(&tensors, u64::MAX), [[0, 1, 2, 3, 4]]);
    }

    #[test]
    fn names_have_the_number_before_the_suffix() {
        let names = |path: &str| names_of(Path::new(path), 2).unwrap()[1].clone();
        assert_eq!(names("a/model.flashpack"), "model-00002-of-00002.flashpack");
        assert_eq!(names("model.fp16.flashpack"), "model.fp16-00002-of-00002.flashpack");
        assert_eq!(names(".hidden"), ".hidden-00002-of-00002");
        for (text, expected) in [("-00001-of-00002", true), ("-0001-of-00002", false), ("", false)] {
            assert_eq!(is_number(text), expected, "{text}");
        }
    }
}
