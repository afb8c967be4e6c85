//! Entries that are torn, damaged or forged, and bytes that prove to be wrong.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Changes a file of the entry; what is loaded then is right, and makes the entry whole again.
fn heals(what: &str, damage: impl Fn(&[PathBuf; 2])) {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 4 * MIB + 9);
    load(folder.path(), "a", &object, MIB);
    damage(&files(folder.path()));
    assert!(load(folder.path(), "a", &object, MIB) > 0, "{what}: this was to be damage");
    assert_eq!(load(folder.path(), "a", &object, MIB), 0, "{what}: it was not made whole");
}

fn write(path: &Path, bytes: &[u8], offset: u64) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn set_len(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn damaged_data_is_fetched_again() {
    heals("a wrong byte", |[data, _]| write(data, b"x", 2 * MIB));
    heals("a wrong last byte", |[data, _]| write(data, b"x", 4 * MIB + 8));
    heals("shorter", |[data, _]| set_len(data, MIB));
    heals("empty", |[data, _]| set_len(data, 0));
    heals("gone", |[data, _]| fs::remove_file(data).unwrap());
}

#[test]
fn a_damaged_map_is_made_anew() {
    heals("a wrong digest", |[_, map]| write(map, &[7; 8], 4096 + 16));
    heals("no magic", |[_, map]| write(map, b"x", 0));
    heals("another length", |[_, map]| write(map, &u64::MAX.to_le_bytes(), 8));
    heals("another version", |[_, map]| write(map, &[7; 32], 48));
    heals("shorter", |[_, map]| set_len(map, 4096 + 8));
    heals("longer", |[_, map]| set_len(map, 1 << 40));
    heals("empty", |[_, map]| set_len(map, 0));
    heals("gone", |[_, map]| fs::remove_file(map).unwrap());
}

#[test]
fn wrong_bytes_that_were_kept_are_forgotten_before_the_next_read() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 4 * MIB);
    for is_written in [false, true] {
        let name = if is_written { "written" } else { "on its way" };
        let mut opened = open(folder.path(), name, &object);
        object.lies.store(true, Ordering::Relaxed);
        let mut bytes = vec![0; to_usize(2 * MIB)];
        opened.read_exact_at(&mut [&mut bytes], MIB).unwrap();
        assert!(bytes != object.bytes[to_usize(MIB)..to_usize(3 * MIB)]);
        object.lies.store(false, Ordering::Relaxed);
        if is_written {
            opened = open(folder.path(), name, &object);
        }
        opened.distrust(MIB, 1);
        check(&*opened, &object, MIB..3 * MIB);
        drop(opened);
        assert_eq!(load(folder.path(), name, &object, MIB), 2 * MIB, "{name}: what was right, is kept");
        assert_eq!(load(folder.path(), name, &object, MIB), 0);
    }
}

#[test]
fn what_cannot_be_forgotten_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, MIB);
    load(folder.path(), "a", &object, MIB);
    let cache = Folder::open(folder.path(), None).unwrap();
    let mut entry = Entry::open(&cache, "s3://bucket/a?", "\"1\"", MIB).unwrap();
    entry.files().map = fs::File::open(&files(folder.path())[1]).unwrap(); // not for writing
    let entry = Arc::new(entry);
    let behind = Behind::new(Arc::clone(&entry), cache, Budget::default());
    let (is_damaged, served) = Default::default();
    let opened = Cached { object: Arc::clone(&object) as _, entry, behind, is_damaged, served };
    check(&opened, &object, 0..MIB);
    assert_eq!(object.requests(), 1);
    opened.distrust(0, 1);
    check(&opened, &object, 0..MIB);
    assert_eq!(object.requests(), 2);
}

#[test]
fn a_read_that_fails_keeps_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let object = Fake::numbered(1, 2 * MIB);
    let opened = open(folder.path(), "a", &object);
    object.fails.store(true, Ordering::Relaxed);
    let error = opened.read_exact_at(&mut [&mut vec![0; to_usize(2 * MIB)]], 0).unwrap_err();
    assert_eq!(error.to_string(), "the store is gone");
    object.fails.store(false, Ordering::Relaxed);
    drop(opened);
    assert_eq!(load(folder.path(), "a", &object, MIB), 2 * MIB);
}
