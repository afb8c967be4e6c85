//! Files appear whole or not at all, with the right permissions, and leave nothing behind.

mod common;

#[cfg(unix)]
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use common::{pack, tensor};
use flashpack::{
    ErrorKind, Reader,
    format::{DType, layout::Order},
    io::{
        temporary::name_beside,
        write::{AtomicFile, NewFile},
    },
};

fn model() -> Vec<common::Tensor> {
    vec![tensor("weight", DType::Float32, &[64, 32]), tensor("bias", DType::Float32, &[32])]
}

fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[cfg(unix)]
#[test]
fn a_new_file_honours_the_umask_and_a_replaced_one_keeps_its_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/model.flashpack");
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    rustix::process::umask(umask);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o604);
    assert_eq!(files_in(path.parent().unwrap()), ["model.flashpack"]);
}

/// A group that this process may give its files, beside the one that they have anyway.
#[cfg(unix)]
fn another_group() -> Option<u32> {
    let own = rustix::process::getegid().as_raw();
    let mut groups = rustix::process::getgroups().unwrap().into_iter().map(rustix::process::Gid::as_raw);
    if rustix::process::geteuid().is_root() { Some(own + 5678) } else { groups.find(|&group| group != own) }
}

/// A process with one group that is not root cannot show this; the rule for modes has a test of its own in `os::unix`.
#[cfg(unix)]
#[test]
fn a_replaced_file_keeps_its_group() {
    let Some(group) = another_group() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    std::os::unix::fs::chown(&path, None, Some(group)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let group_and_mode = || fs::metadata(&path).map(|file| (file.gid(), file.mode() & 0o777)).unwrap();
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    assert_eq!(group_and_mode(), (group, 0o640));
    #[cfg(target_os = "linux")]
    if rustix::process::geteuid().is_root() {
        let own = rustix::process::getegid().as_raw();
        without_changing_owners(|| pack(&path, &model(), Order::LargestFirst, 128).unwrap());
        assert_eq!(group_and_mode(), (own, 0o600), "another group gets nothing");
    }
}

/// Does `work`, in which this thread may not give files to others, as those who are not root may not.
#[cfg(target_os = "linux")]
fn without_changing_owners<T>(work: impl FnOnce() -> T) {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let may = capabilities(None).unwrap();
    let mut less = may;
    less.effective.remove(CapabilitySet::CHOWN);
    set_capabilities(None, less).unwrap();
    work();
    set_capabilities(None, may).unwrap();
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("store.flashpack"), folder.path().join("link.flashpack"));
    symlink("store.flashpack", &link).unwrap();
    for _ in 0..2 {
        pack(&link, &model(), Order::LargestFirst, 128).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::symlink_metadata(&target).unwrap().is_file());
        Reader::open(&link).unwrap();
    }
    let circle = folder.path().join("circle");
    symlink("circle", &circle).unwrap();
    assert_eq!(pack(&circle, &model(), Order::LargestFirst, 128).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    fs::write(&path, b"precious").unwrap();
    {
        let mut file = AtomicFile::create(&path, 100).unwrap();
        file.write(b"half").unwrap();
        let names = if cfg!(target_os = "linux") { 1 } else { 2 };
        assert_eq!(
            files_in(folder.path()).len(),
            names,
            "what is not finished has no name where there are such files"
        );
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(files_in(folder.path()), ["model.flashpack"]);
    let directory = pack(folder.path(), &model(), Order::LargestFirst, 128).unwrap_err();
    assert_eq!((directory.kind(), directory.errno()), (ErrorKind::Io, Some(21)));
}

#[test]
fn another_may_fill_a_file_and_put_it_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let (file, temporary, destination) = NewFile::create(&path).unwrap().into_parts();
    let mut file = file.unwrap();
    file.write_all(&[7; 100]).unwrap();
    assert!(!path.exists());
    assert_eq!(NewFile::adopt(file, temporary, destination).commit().unwrap(), 100);
    assert_eq!(fs::read(&path).unwrap(), [7; 100]);
    assert_eq!(files_in(folder.path()), ["model.flashpack"]);
}

/// Bytes that differ from those of every other place in a file of some MiB.
fn bytes_from(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|place| ((place * 2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

#[test]
fn files_of_many_buffers_have_their_bytes_in_order() {
    const STEPS: [usize; 5] = [1, 4096, 300_001, 5 << 20, 0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let buffer = 4 << 20;
    for total in [buffer - 1, buffer, buffer + 1, 2 * buffer, 20 * buffer + 4097] {
        let expected = [0, total as u64, 2 * total as u64][total % 3];
        let mut file = AtomicFile::create(&path, expected).unwrap();
        let mut steps = STEPS.iter().cycle();
        let mut done = 0;
        while done < total {
            let step = (*steps.next().unwrap()).min(total - done);
            file.write(&bytes_from(done, step)).unwrap();
            done += step;
        }
        assert_eq!(file.commit().unwrap(), total as u64);
        assert!(fs::read(&path).unwrap() == bytes_from(0, total), "{total} bytes");
    }
    assert_eq!(files_in(folder.path()), ["large"]);
}

#[test]
fn a_large_file_that_is_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let mut file = AtomicFile::create(&path, 0).unwrap();
    file.write(&bytes_from(0, 50 << 20)).unwrap();
    drop(file);
    assert!(files_in(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_io_error_before_and_while_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    fs::write(&path, b"precious").unwrap();
    let error = AtomicFile::create(&path, 1 << 60).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(matches!(error.errno(), Some(27 | 28)), "EFBIG or ENOSPC: {error}");
    assert_eq!((fs::read(&path).unwrap().as_slice(), files_in(folder.path()).len()), (&b"precious"[..], 1));
}

fn planted(destination: &Path, end: &str, bytes: &[u8], age: Duration) -> PathBuf {
    let mut name = name_beside(destination).into_os_string();
    name.push(end);
    fs::write(&name, bytes).unwrap();
    fs::File::options().write(true).open(&name).unwrap().set_modified(SystemTime::now() - age).unwrap();
    PathBuf::from(name)
}

#[test]
fn files_of_dead_writers_are_swept_and_those_of_others_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let [now, long_ago] = [0, 60].map(Duration::from_secs);
    let dead = planted(&path, "", b"half a model", now);
    let dead_at_once = planted(&path, "-new", b"", long_ago);
    let live = planted(&path, "", b"half a model", long_ago);
    let lock = fs::File::options().read(true).write(true).open(&live).unwrap();
    lock.try_lock().unwrap();
    let about_to_lock = planted(&path, "-new", b"", now);
    let without_locks = planted(&path, "-new", b"half a model", long_ago);
    let elsewhere = folder.path().join(".model.flashpack.flashpack-tmp-0123456789abcdef-1-0-0");
    fs::write(&elsewhere, b"half a model").unwrap();
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    assert!(!dead.exists() && !dead_at_once.exists());
    for kept in [live, about_to_lock, without_locks, elsewhere] {
        assert!(kept.exists(), "{kept:?}");
    }
}

/// Opening a pipe waits until somebody writes to it.
#[cfg(unix)]
#[test]
fn pipes_and_links_that_others_put_beside_the_destination_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let [pipe, link] = [0, 1].map(|_| name_beside(&path));
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    symlink(&pipe, &link).unwrap();
    let long_ago = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
    for file in [&pipe, &link] {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, file, &times, flags).unwrap();
    }
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    assert_eq!(files_in(folder.path()).len(), 3);
    assert!(fs::symlink_metadata(&pipe).is_ok() && fs::symlink_metadata(&link).is_ok());
}

#[test]
fn a_footer_that_no_reader_takes_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let long = tensor(&"n".repeat(256 << 20), DType::Uint8, &[1]);
    let error = pack(&path, &[long], Order::LargestFirst, 128).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let message = error.to_string();
    assert!(message.contains("model.flashpack: needs a footer of 268435"), "{message}");
    assert!(message.contains("over the limit of 268435456"), "{message}");
    assert!(files_in(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = pack(&fifo, &model(), Order::LargestFirst, 128).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("not a regular file"), "{error}");
    assert_eq!(files_in(folder.path()), ["fifo"]);
}

#[test]
fn names_at_the_file_systems_limit_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{}.flashpack", "\u{e9}".repeat(122)));
    pack(&path, &model(), Order::LargestFirst, 128).unwrap();
    Reader::open(&path).unwrap();
}
