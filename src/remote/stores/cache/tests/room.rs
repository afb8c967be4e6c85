//! What entries may take, whose turn it is to go, and folders that are no caches.

use std::{
    fs::File,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    time::{Duration, UNIX_EPOCH},
};

use super::{processes::STARTING, *};
use crate::sync::Unpoisoned as _;

/// While no process is started: until it runs its program, it holds the locks of this one.
fn alone() -> impl Drop {
    STARTING.read().unpoisoned()
}

fn load_within(folder: &Path, limit: u64, name: &str, object: &Arc<Fake>) -> Arc<dyn Object> {
    let address = format!("s3://bucket/{name}");
    let opened = cached(Arc::clone(object) as _, &address, "\"1\"", &cache(folder, Some(limit)));
    check(&*opened, object, 0..object.len());
    opened
}

/// The own folder in `folder`.
fn own(folder: &Path) -> PathBuf {
    fs::read_dir(folder).unwrap().map(|own| own.unwrap().path()).find(|path| path.is_dir()).unwrap()
}

fn used(folder: &Path) -> u64 {
    let files = fs::read_dir(own(folder)).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Loads objects of 1 MiB one after the other, and sets when each was used: `seconds` after the epoch.
fn fill(folder: &Path, names: &[(&str, u64)], object: &Arc<Fake>) {
    for (name, seconds) in names {
        let before = maps(folder);
        drop(load_within(folder, 100 * MIB, name, object));
        let new: Vec<_> = maps(folder).into_iter().filter(|map| !before.contains(map)).collect();
        let map = File::options().write(true).open(&new[0]).unwrap();
        map.set_modified(UNIX_EPOCH + Duration::from_secs(*seconds)).unwrap();
    }
}

fn maps(folder: &Path) -> Vec<PathBuf> {
    let own = fs::read_dir(folder).unwrap().map(|own| own.unwrap().path()).find(|path| path.is_dir());
    let files = own.into_iter().flat_map(|own| fs::read_dir(own).unwrap()).map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|suffix| suffix == "map")).collect()
}

#[test]
fn what_was_used_longest_ago_goes_first_unless_it_is_in_use() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    fill(folder.path(), &[("b", 20), ("a", 10), ("d", 40), ("c", 30)], &object);
    let in_use = open(folder.path(), "a", &object); // and used last
    let map = File::options().write(true).open(map_of(folder.path(), "a", &object)).unwrap();
    map.set_modified(UNIX_EPOCH).unwrap(); // though its time has come
    let limit = used(folder.path());
    drop(load_within(folder.path(), limit, "e", &object));
    assert_eq!(used(folder.path()), limit);
    let fetched = object.traffic().fetched_bytes;
    for name in ["a", "c", "d", "e"] {
        load(folder.path(), name, &object, MIB);
    }
    assert_eq!(object.traffic().fetched_bytes, fetched, "all but b are there");
    drop(in_use);
}

/// The map of the entry that is touched when `name` is opened.
fn map_of(folder: &Path, name: &str, object: &Arc<Fake>) -> PathBuf {
    drop(open(folder, name, object));
    let last = |map: &PathBuf| map.metadata().unwrap().modified().unwrap();
    maps(folder).into_iter().max_by_key(last).unwrap()
}

#[test]
fn opening_makes_an_entry_the_one_used_last() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    fill(folder.path(), &[("a", 10), ("b", 20)], &object);
    drop(open(folder.path(), "a", &object));
    drop(load_within(folder.path(), used(folder.path()), "c", &object));
    assert_eq!(load(folder.path(), "a", &object, MIB), 0);
    assert_eq!(load(folder.path(), "b", &object, MIB), MIB);
}

#[test]
fn an_object_that_is_larger_than_the_limit_is_kept_in_part_at_most() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 140 * MIB);
    let limit = 100 * MIB;
    let cache = cache(folder.path(), Some(limit));
    let opened = Cached::open(&(Arc::clone(&object) as _), "s3://bucket/a", "\"1\"", &cache).unwrap();
    check(&opened, &object, 0..object.len());
    opened.behind.settle();
    assert!(opened.note().unwrap().ends_with("as much as it may"));
    drop(opened);
    let kept = used(folder.path());
    assert!((60 * MIB..=limit).contains(&kept), "{kept}");
    assert_eq!(object.requests(), 1);
}

#[test]
fn half_of_the_space_is_the_default_limit() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let cache = Folder::open(folder.path(), None).unwrap();
    let free = rustix::fs::statvfs(folder.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    assert!(cache.make_room(free / 4).unwrap());
    assert!(!cache.make_room(free / 4 * 3).unwrap());
}

#[test]
fn files_of_others_stay() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    drop(load_within(folder.path(), 100 * MIB, "a", &object));
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    let entry = maps(folder.path())[0].with_extension("");
    let own = entry.parent().unwrap();
    let strange =
        [own.join("notes.txt"), own.join("short.data"), own.join(format!("{}.data", "X".repeat(64)))];
    for path in &strange {
        fs::write(path, vec![1; 1 << 16]).unwrap();
    }
    let link = own.join(format!("{}.data", "0".repeat(64)));
    symlink(&target, &link).unwrap();
    fs::create_dir(own.join(format!("{}.map", "1".repeat(64)))).unwrap();
    Folder::open(folder.path(), Some(0)).unwrap().make_room(0).unwrap();
    assert!(!entry.with_extension("data").exists() && !entry.with_extension("map").exists());
    assert!(strange.iter().all(|path| path.exists()));
    assert_eq!(fs::read_to_string(link).unwrap(), "precious");
}

#[test]
fn data_without_a_map_goes_too() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    drop(load_within(folder.path(), 100 * MIB, "a", &Fake::numbered(1, MIB)));
    fs::remove_file(&maps(folder.path())[0]).unwrap();
    assert!(Folder::open(folder.path(), Some(MIB)).unwrap().make_room(MIB).unwrap());
    assert_eq!(used(folder.path()), 0);
}

#[test]
fn an_entry_that_is_a_link_is_not_followed() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    load(folder.path(), "a", &object, MIB);
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    for file in maps(folder.path()).iter().flat_map(|map| [map.clone(), map.with_extension("data")]) {
        fs::remove_file(&file).unwrap();
        symlink(&target, &file).unwrap();
        assert_eq!(load(folder.path(), "a", &object, MIB), MIB);
        fs::remove_file(&file).unwrap();
    }
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");
}

#[test]
fn nobody_else_sees_what_is_kept() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("made/for/it");
    load(&parent, "a", &Fake::numbered(1, MIB), MIB);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(&parent), mode(&own(&parent))], [0o700; 2]);
    assert!(files(&parent).iter().all(|file| mode(file) == 0o600));
}

#[test]
fn folders_that_cannot_be_a_cache_cost_nothing_but_the_cache() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    load(&folder.path().join("open"), "a", &object, MIB);
    let open = own(&folder.path().join("open"));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for parent in [file, folder.path().join("open"), "/proc/none".into()] {
        assert_eq!(load(&parent, "a", &object, MIB), MIB, "{}", parent.display());
    }
    assert_eq!(maps(&folder.path().join("open")).len(), 1);
}
