//! Saves of several files: what they hold, that they appear together, and what is left of them.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use flashpack::{
    Progress, Result,
    format::{
        DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    io::temporary::{TemporaryFolder, name_beside},
    load::{self, Options},
    model::Model,
    plan::{Ignore, Selection},
    shards::{Request, Save},
};

const LENGTH: usize = 1000;
const TENSOR_BYTES: u64 = LENGTH as u64;

/// Begins a save of so many tensors, two in each file, with all their bytes but for the last tensor's.
fn begun(path: &Path, count: u8, shard_bytes: Option<u64>) -> Result<Save<'static>> {
    let spec = |number: u8| TensorSpec {
        name: number.to_string(),
        dtype: DType::Uint8,
        shape: vec![TENSOR_BYTES],
        tied_to: None,
    };
    let request = Request {
        destination: path.to_owned(),
        order: Order::Given,
        align_bytes: 0,
        metadata: BTreeMap::from([("kept".to_owned(), "yes".to_owned())]),
        algorithm: Algorithm::Xxh3,
        shard_bytes,
        compress: None,
    };
    let mut save = Save::begin(&(0..count).map(spec).collect::<Vec<_>>(), request, Progress::SILENT)?;
    (0..count - 1).try_for_each(|number| save.write(&[number; LENGTH]))?;
    Ok(save)
}

fn save(path: &Path, count: u8, shard_bytes: Option<u64>) -> Result<u64> {
    let mut save = begun(path, count, shard_bytes)?;
    save.write(&[count - 1; LENGTH])?;
    save.finish()
}

fn is_sound(path: &Path, count: u8) {
    let everything = Ignore::default();
    let options = Options { eager: Some(true), verify: Some(true), ..Options::default() };
    let mut loaded = load::load(path, Selection::Except(&everything), options, Progress::SILENT).unwrap();
    assert_eq!(loaded.names.len(), usize::from(count));
    for number in 0..loaded.names.len() {
        let value: u8 = loaded.names[number].parse().unwrap();
        assert_eq!(loaded.to_bytes(number), [value; LENGTH]);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const SHARDS_OF_TWO: Option<u64> = Some(2 * TENSOR_BYTES);
const SET: [&str; 4] = [
    "model-00001-of-00003.flashpack",
    "model-00002-of-00003.flashpack",
    "model-00003-of-00003.flashpack",
    "model.flashpack.index.json",
];

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    (folder, path)
}

#[test]
fn several_files_are_one_model() {
    let (folder, path) = place();
    let bytes = save(&path, 5, SHARDS_OF_TWO).unwrap();
    assert_eq!(names(folder.path()), SET);
    let sizes = SET[..3].iter().map(|name| fs::metadata(folder.path().join(name)).unwrap().len());
    assert_eq!(bytes, sizes.sum::<u64>());
    is_sound(&path, 5);
    let model = Model::open(&path).unwrap();
    assert_eq!(model.index.metadata().iter().collect::<Vec<_>>(), [(&"kept".to_owned(), &"yes".to_owned())]);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join(SET[3])).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 5 * TENSOR_BYTES);
    assert_eq!(index["weight_map"]["4"], SET[2]);
}

#[test]
fn what_earlier_saves_left_is_swept() {
    let (folder, path) = place();
    let others = ["model-00001-of-00003.txt", "other-00001-of-00003.flashpack"];
    for name in others {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let with_others = |names: &[&str]| {
        let mut all: Vec<_> = names.iter().chain(&others).map(ToString::to_string).collect();
        all.sort();
        all
    };
    for (count, shard_bytes, expected) in [
        (8, SHARDS_OF_TWO, None),
        (5, SHARDS_OF_TWO, Some(&SET[..])),
        (5, Some(1 << 20), Some(&["model.flashpack"][..])),
        (5, SHARDS_OF_TWO, Some(&SET)),
    ] {
        save(&path, count, shard_bytes).unwrap();
        is_sound(&path, count);
        if let Some(expected) = expected {
            assert_eq!(names(folder.path()), with_others(expected));
        }
    }
}

#[test]
fn a_save_that_is_given_up_changes_nothing() {
    let (folder, path) = place();
    save(&path, 5, SHARDS_OF_TWO).unwrap();
    let before: Vec<_> = SET.map(|name| fs::read(folder.path().join(name)).unwrap()).into();
    drop(begun(&path, 7, SHARDS_OF_TWO).unwrap());
    begun(&path, 7, SHARDS_OF_TWO).unwrap().finish().expect_err("bytes are missing");
    assert_eq!(names(folder.path()), SET);
    assert_eq!(SET.map(|name| fs::read(folder.path().join(name)).unwrap()).to_vec(), before);
}

#[cfg(unix)]
#[test]
fn more_files_than_a_process_should_hold_open_lie_in_a_folder() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let (folder, path) = place();
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(99), ..old }).unwrap();
    save(&path, 4, SHARDS_OF_TWO).unwrap();
    let mut unfinished = begun(&path, 60, SHARDS_OF_TWO).unwrap();
    assert_eq!(names(folder.path()).len(), 4, "a folder for the shards, and the set of two");
    // A save that lives is left alone.
    save(&path, 4, SHARDS_OF_TWO).unwrap();
    assert_eq!(names(folder.path()).len(), 4);
    unfinished.write(&[59; LENGTH]).unwrap();
    unfinished.finish().unwrap();
    setrlimit(Resource::Nofile, old).unwrap();
    is_sound(&path, 60);
    assert_eq!(names(folder.path()).len(), 31, "the folder is gone, and the set before");
}

#[test]
fn folders_of_dead_writers_are_swept() {
    let (folder, path) = place();
    let dead = name_beside(&path);
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("model-00001-of-00003.flashpack"), "half").unwrap();
    let mut young = name_beside(&path).into_os_string();
    young.push("-new");
    fs::create_dir(&young).unwrap();
    let alive = TemporaryFolder::beside(&path).unwrap();
    for shard_bytes in [SHARDS_OF_TWO, None] {
        save(&path, 5, shard_bytes).unwrap();
        assert!(alive.path().exists() && Path::new(&young).exists());
        assert!(!dead.exists());
        fs::create_dir(&dead).unwrap();
    }
    drop(alive);
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().filter(|it| it.as_ref().unwrap().path().is_dir()).count(),
        2
    );
}

#[cfg(unix)]
#[test]
fn destinations_that_cannot_be_are_refused_before_anything_is_written() {
    use std::os::unix::ffi::OsStrExt as _;

    use flashpack::ErrorKind;
    let (folder, _) = place();
    let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"mod\xe8l.flashpack"));
    let error = save(&odd, 5, SHARDS_OF_TWO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("is not UTF-8, as the names of shards must be"), "{error}");
    let error = save(folder.path(), 5, SHARDS_OF_TWO).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, Some(21)));
    assert!(names(folder.path()).is_empty());
    save(&odd, 5, Some(1 << 20)).unwrap();
    is_sound(&odd, 5);
}
