//! The shards of one save and their index, from the first byte until all are in place.

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
};

use super::bytes_of;
use crate::{
    error::{At as _, Error, IoContext as _, Result},
    format::{layout::TensorSpec, shards::Shards},
    io::{
        temporary::{TemporaryFolder, folder_of, remove_abandoned},
        write::{
            AtomicFile, Finished, Growing, NewFile, NewObject, flush_folder, move_in_place, prepare,
            refuse_irregular,
        },
    },
    jobs::pack::Packer,
    model::folder::index_path,
    os, remote,
};

/// Shards on their way.
pub(super) struct Set {
    /// What its shards have in common.
    pub(super) name: String,
    /// Where the shards go.
    pub(super) places: Vec<PathBuf>,
    index: Finished,
    pub(super) stage: Stage,
    pub(super) bytes: u64,
}

/// Where shards are until all are written.
pub(super) enum Stage {
    /// They have no names, so that nothing stays of a writer that is killed.
    Nameless(Vec<NewFile>),
    /// Where the file system needs names, or they are more than a process should hold open, they lie in a folder that
    /// the next save sweeps; and what each is to be renamed to.
    Folder(TemporaryFolder, Vec<(PathBuf, PathBuf)>),
    /// Objects of a store, which appear when all have been written.
    Objects(Vec<NewObject>),
}

impl Set {
    pub(super) fn begin(destination: &Path, tensors: &[TensorSpec], parts: &[Vec<usize>]) -> Result<Self> {
        let names = names_of(destination, parts.len()).at(destination)?;
        let name = format!("{:016x}", RandomState::new().build_hasher().finish());
        let weight_map = parts.iter().zip(&names);
        let weight_map = weight_map
            .flat_map(|(part, name)| part.iter().map(|&number| (tensors[number].name.clone(), name.clone())))
            .collect();
        let untied = tensors.iter().filter(|tensor| tensor.tied_to.is_none());
        let total_bytes = untied.map(bytes_of).sum();
        let json = Shards { weight_map, set: Some(name.clone()) }.render(total_bytes);
        let (index, stage) = match remote::url(destination) {
            Some(_) => {
                let mut index = Growing::create(&index_path(destination), json.len() as u64)?;
                index.write(json.as_bytes())?;
                (index.finish()?, Stage::Objects(vec![]))
            }
            None => begin_files(destination, &json, parts.len())?,
        };
        let places = names.iter().map(|name| beside(destination, name)).collect();
        Ok(Self { name, places, index, stage, bytes: 0 })
    }

    /// Takes a file that has all its bytes.
    pub(super) fn take(&mut self, packer: Packer<'_>) -> Result<()> {
        self.bytes += match (&mut self.stage, packer.complete()?) {
            (Stage::Nameless(files), Finished::File(file)) => {
                let bytes = file.make_durable()?;
                files.push(file);
                bytes
            }
            (Stage::Objects(objects), Finished::Object(mut object)) => {
                object.seal()?;
                let bytes = object.bytes();
                objects.push(object);
                bytes
            }
            (_, finished) => finished.commit()?,
        };
        Ok(())
    }

    pub(super) fn put_in_place(self) -> Result<()> {
        if let Finished::File(index) = &self.index {
            index.make_durable()?;
        }
        match self.stage {
            Stage::Nameless(files) => put_files_in_place(files)?,
            Stage::Objects(objects) => {
                objects.into_iter().try_for_each(|object| object.commit().map(drop))?;
            }
            Stage::Folder(_folder, moves) => {
                moves.iter().try_for_each(|(from, to)| move_in_place(from, to))?;
                flush_folders(moves.iter().map(|(_, to)| &**to))?;
            }
        }
        self.index.commit().map(drop)
    }
}

impl Stage {
    /// Begins the shard for `place`, of about `bytes`.
    pub(super) fn begin(&mut self, place: &Path, bytes: u64) -> Result<Growing> {
        let Self::Folder(folder, moves) = self else {
            return Growing::create(place, bytes);
        };
        let from = folder.path().join(place.file_name().expect("places are files"));
        let to = prepare(place)?;
        let file = AtomicFile::create_like(&from, &to, bytes)?;
        moves.push((from, to));
        Ok(Growing::File(file))
    }
}

/// The index of `count` shards of the save to `destination`, and where they wait.
fn begin_files(destination: &Path, json: &str, count: usize) -> Result<(Finished, Stage)> {
    refuse_irregular(destination)?;
    let mut index = NewFile::create(&index_path(destination))?;
    index.write(json.as_bytes())?;
    remove_abandoned(destination);
    let stage = if index.has_name() || are_many(count) {
        let beside = TemporaryFolder::beside(destination);
        Stage::Folder(beside.during("cannot create a temporary folder in its folder", destination)?, vec![])
    } else {
        Stage::Nameless(vec![])
    };
    Ok((Finished::File(index), stage))
}

/// `name` in the folder of `destination`.
fn beside(destination: &Path, name: &str) -> PathBuf {
    match remote::url(destination) {
        Some(url) => remote::beside(url, name).into(),
        None => destination.with_file_name(name),
    }
}

/// What has the shards' names goes first: to replace it would take temporary names.
fn put_files_in_place(mut files: Vec<NewFile>) -> Result<()> {
    for file in &mut files {
        let _ = fs::remove_file(file.destination());
        file.put_in_place()?;
    }
    flush_folders(files.iter().map(NewFile::destination))
}

/// Flushes the folders that these files lie in.
fn flush_folders<'a>(files: impl Iterator<Item = &'a Path>) -> Result<()> {
    files.map(folder_of).collect::<BTreeSet<_>>().into_iter().try_for_each(flush_folder)
}

/// Whether these are more files than a process should hold open.
fn are_many(files: usize) -> bool {
    os::open_file_limit().is_some_and(|limit| files as u64 > limit / 4)
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
pub(super) fn sweep(destination: &Path, keep: &[PathBuf]) -> Result<()> {
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
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during("cannot remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
