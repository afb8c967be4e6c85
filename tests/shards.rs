//! Saves of several files: what they hold, that they appear together, and what is left of them.

mod common;

#[cfg(unix)]
use std::sync::{Mutex, PoisonError};
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

/// Does `work` while this process may hold so few files open that 30 shards are written into a folder.
#[cfg(unix)]
fn with_few_files(work: impl FnOnce()) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(99), ..old }).unwrap();
    work();
    setrlimit(Resource::Nofile, old).unwrap();
}

#[cfg(unix)]
#[test]
fn more_files_than_a_process_should_hold_open_lie_in_a_folder() {
    let (folder, path) = place();
    with_few_files(|| {
        save(&path, 4, SHARDS_OF_TWO).unwrap();
        let mut unfinished = begun(&path, 60, SHARDS_OF_TWO).unwrap();
        assert_eq!(names(folder.path()).len(), 4, "a folder for the shards, and the set of two");
        // A save that lives is left alone.
        save(&path, 4, SHARDS_OF_TWO).unwrap();
        assert_eq!(names(folder.path()).len(), 4);
        unfinished.write(&[59; LENGTH]).unwrap();
        unfinished.finish().unwrap();
    });
    is_sound(&path, 60);
    assert_eq!(names(folder.path()).len(), 31, "the folder is gone, and the set before");
}

#[cfg(unix)]
#[test]
fn shards_that_wait_in_a_folder_have_the_modes_and_links_of_those_they_replace() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let (folder, path) = place();
    let shard = |number: u8| folder.path().join(format!("model-{number:05}-of-00030.flashpack"));
    // Another file system, where there is one.
    let elsewhere = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let [near, far] = [folder.path().join("shards/near"), elsewhere.path().join("far")];
    fs::create_dir(near.parent().unwrap()).unwrap();
    with_few_files(|| {
        save(&path, 60, SHARDS_OF_TWO).unwrap();
        fs::set_permissions(shard(1), fs::Permissions::from_mode(0o600)).unwrap();
        for (number, target) in [(2, &near), (3, &far)] {
            fs::remove_file(shard(number)).unwrap();
            fs::write(target, "old").unwrap();
            fs::set_permissions(target, fs::Permissions::from_mode(0o604)).unwrap();
            symlink(target, shard(number)).unwrap();
        }
        save(&path, 60, SHARDS_OF_TWO).unwrap();
    });
    is_sound(&path, 60);
    let mode = |number| fs::metadata(shard(number)).unwrap().permissions().mode() & 0o777;
    assert_eq!([1, 2, 3].map(mode), [0o600, 0o604, 0o604]);
    assert_eq!([2, 3].map(|number| fs::read_link(shard(number)).unwrap()), [near.clone(), far]);
    assert_eq!((names(near.parent().unwrap()).len(), names(elsewhere.path()).len()), (1, 1));
}

#[cfg(unix)]
#[test]
fn a_folder_in_a_shards_place_is_refused_before_any_shard_is_put_in_place() {
    let (folder, path) = place();
    let shard = |number: u8| folder.path().join(format!("model-{number:05}-of-00030.flashpack"));
    with_few_files(|| {
        save(&path, 60, SHARDS_OF_TWO).unwrap();
        fs::remove_file(shard(30)).unwrap();
        fs::create_dir(shard(30)).unwrap();
        let before = fs::read(shard(1)).unwrap();
        assert_eq!(save(&path, 60, SHARDS_OF_TWO).unwrap_err().errno(), Some(21));
        assert!(fs::read(shard(1)).unwrap() == before);
    });
    assert_eq!(names(folder.path()).len(), 31);
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
