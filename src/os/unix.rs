//! What Linux and macOS do in one way, and Windows in another.

pub(crate) use std::os::unix::fs::FileExt;
use std::{
    ffi::{CString, OsStr},
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
        },
    },
    path::{Path, PathBuf},
};

#[cfg(not(target_os = "linux"))]
use libc::mmap;
#[cfg(target_os = "linux")]
use libc::mmap64 as mmap; // offsets have 64 bits on every processor
use memmap2::MmapRaw;
use rustix::process::{Resource, getrlimit};

use super::{errno, is_any_of};

/// Whether several files can be mapped one behind the other; see [`map_over`].
pub(crate) const MAPS_SIDE_BY_SIDE: bool = true;

/// The number of an error that the system gave.
pub(crate) fn number_of(error: &io::Error) -> Option<i32> {
    error.raw_os_error()
}

/// The error of that number.
pub(crate) fn error_of(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Opens a file or folder to be read. It waits for no pipe.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Has `options` open no symbolic link, and wait for no pipe.
pub(crate) fn refuse_links(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
}

/// Has `options` create files of this mode, less the umask.
pub(crate) fn set_mode(options: &mut OpenOptions, mode: u32) -> &mut OpenOptions {
    options.mode(mode)
}

/// Gives a new file the group and the mode of `old`. If it may not have that group, its own gets no more than others do.
pub(crate) fn set_access(file: &File, old: &Metadata) -> io::Result<()> {
    let has_group = file.metadata()?.gid() == old.gid() || fchown(file, None, Some(old.gid())).is_ok();
    let mode = if has_group { old.mode() } else { mode_for_another_group(old.mode()) };
    file.set_permissions(Permissions::from_mode(mode))
}

/// `mode`, with which the members of another group get no more than they had as others.
const fn mode_for_another_group(mode: u32) -> u32 {
    let others = mode & 0o007;
    mode & (!0o070 | others << 3)
}

/// What a file is known by when it is looked at again: device, inode, length, time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The number of the device that it lies on.
    pub(crate) device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Identity {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            changed: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// Lets others read a file that this process has locked: here locks keep nobody from reading.
pub(crate) const fn admit_readers(_: &File) {}

/// Renames a folder in which files are open; whether it has the new name then.
pub(crate) fn rename_in_use(from: &Path, to: &Path) -> io::Result<bool> {
    fs::rename(from, to).map(|()| true)
}

/// Flushes the entries of a folder to the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems cannot flush a folder; their renames are as durable as they get.
        Err(error) if is_any_of(&error, &[errno::EINVAL]) => Ok(()),
        synced => synced,
    }
}

/// What this machine is called.
pub(crate) fn host_name() -> CString {
    rustix::system::uname().nodename().to_owned()
}

/// How many files this process may hold open, if there is a limit.
pub(crate) fn open_file_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The paths that `list` has between zeros.
pub(crate) fn split_at_zeros(list: &Path) -> Vec<PathBuf> {
    list.as_os_str().as_bytes().split(|&byte| byte == 0).map(|path| OsStr::from_bytes(path).into()).collect()
}

/// Bytes of a page.
pub(crate) fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// Maps the first `bytes` of `file`, privately, in place of what `map` has from `offset` on, which is the beginning of a page
/// that no reference leads to.
///
/// # Panics
/// The place is not within `map`.
pub(crate) fn map_over(map: &MmapRaw, offset: usize, bytes: usize, file: &File) -> io::Result<()> {
    assert!(offset.checked_add(bytes).is_some_and(|end| end <= map.len()), "a place within the reservation");
    // No swap is reserved, as for the reservation.
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the place lies in `map`, as was just asserted, and no reference leads there, as the caller says. `map` unmaps
    // it with the rest when it is dropped. The new mapping is private, so that this process's writes reach nobody else; of
    // its bytes no reference is made either, so that it does not matter if another process changes the file.
    let mapped =
        unsafe { mmap(map.as_mut_ptr().add(offset).cast(), bytes, protection, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_group_gets_no_more_than_others() {
        for (mode, expected) in
            [(0o640, 0o600), (0o660, 0o600), (0o664, 0o644), (0o604, 0o604), (0o755, 0o755)]
        {
            assert_eq!(mode_for_another_group(mode), expected, "{mode:o}");
        }
    }
}
