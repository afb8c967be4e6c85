//! What Windows does in another way than Linux and macOS.

#![allow(clippy::unnecessary_wraps, reason = "signatures are those of Unix")]

use std::{
    ffi::{CString, OsString},
    fs::{File, Metadata, OpenOptions},
    io,
    os::windows::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use memmap2::MmapRaw;

use super::errno;

/// Whether several files can be mapped one behind the other: here nothing can be mapped over a reservation.
pub(crate) const MAPS_SIDE_BY_SIDE: bool = false;

/// `FILE_FLAG_BACKUP_SEMANTICS` of `CreateFileW`: without it, a folder cannot be opened, and is said to be refused.
const OPEN_FOLDERS: u32 = 0x0200_0000;
/// `FILE_FLAG_OPEN_REPARSE_POINT`: a link is opened, not what it leads to.
const OPEN_LINKS: u32 = 0x0020_0000;

/// What numbers of C stand for. Windows has numbers of its own, which nobody expects elsewhere.
const NUMBERS: [(i32, io::ErrorKind); 11] = [
    (errno::ENOENT, io::ErrorKind::NotFound),
    (errno::EACCES, io::ErrorKind::PermissionDenied),
    (errno::EBUSY, io::ErrorKind::ResourceBusy),
    (errno::EINVAL, io::ErrorKind::InvalidInput),
    (errno::EISDIR, io::ErrorKind::IsADirectory),
    (errno::EOPNOTSUPP, io::ErrorKind::Unsupported),
    (errno::EXDEV, io::ErrorKind::CrossesDevices),
    (libc::EEXIST, io::ErrorKind::AlreadyExists),
    (libc::ENOMEM, io::ErrorKind::OutOfMemory),
    (libc::ENOSPC, io::ErrorKind::StorageFull),
    (libc::ENOTDIR, io::ErrorKind::NotADirectory),
];

/// C's number of an error, if it has one.
pub(crate) fn number_of(error: &io::Error) -> Option<i32> {
    NUMBERS.iter().find(|(_, kind)| *kind == error.kind()).map(|(number, _)| *number)
}

/// The error of that number.
pub(crate) fn error_of(number: i32) -> io::Error {
    match NUMBERS.iter().find(|(known, _)| *known == number) {
        Some((_, kind)) => (*kind).into(),
        None => io::Error::other(format!("error {number} of C")),
    }
}

/// Opens a file or folder to be read.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(OPEN_FOLDERS).open(path)
}

/// Has `options` open no symbolic link.
pub(crate) fn refuse_links(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(OPEN_LINKS)
}

/// Files have no modes here, but what their folder hands down to them.
pub(crate) fn set_mode(options: &mut OpenOptions, _: u32) -> &mut OpenOptions {
    options
}

/// As above, but whether it may be written to.
pub(crate) fn set_access(file: &File, old: &Metadata) -> io::Result<()> {
    file.set_permissions(old.permissions())
}

/// Reads and writes at offsets, as Unix does them.
pub(crate) trait FileExt {
    /// Reads into `buffer` from `offset`: fewer bytes than asked are no error, 0 is the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` from `offset` on.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl FileExt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.seek_read(buffer, offset)
    }

    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.seek_write(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a file is known by when it is looked at again: length, times of its creation and of the last change. std does not
/// tell its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Nor that of its disk: all files count as lying on one.
    pub(crate) device: u64,
    bytes: u64,
    created: u64,
    changed: u64,
}

impl Identity {
    pub(crate) fn of(file: &Metadata) -> Self {
        let (created, changed) = (file.creation_time(), file.last_write_time());
        Self { device: 0, bytes: file.file_size(), created, changed }
    }
}

/// Lets others read a file that this process has locked. It ends the lock: here nobody reads what is locked.
pub(crate) fn admit_readers(file: &File) {
    let _ = file.unlock(); // it may have none
}

/// Renames a folder in which files are open; whether it has the new name then. Windows leaves it where it is.
pub(crate) const fn rename_in_use(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Folders cannot be flushed here; renames are as durable as the file system's journal.
pub(crate) const fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// No name: servers of files keep to locks whichever host they come from, so hosts need not be told apart.
pub(crate) fn host_name() -> CString {
    CString::default()
}

/// There is no limit short of memory.
pub(crate) const fn open_file_limit() -> Option<u64> {
    None
}

/// The paths that `list` has between zeros.
pub(crate) fn split_at_zeros(list: &Path) -> Vec<PathBuf> {
    let units: Vec<u16> = list.as_os_str().encode_wide().collect();
    units.split(|&unit| unit == 0).map(|path| OsString::from_wide(path).into()).collect()
}

/// Bytes of a page: as many on every processor that Windows is for.
pub(crate) const fn page_bytes() -> usize {
    4096
}

/// See [`MAPS_SIDE_BY_SIDE`].
pub(crate) fn map_over(_: &MmapRaw, _: usize, _: usize, _: &File) -> io::Result<()> {
    Err(error_of(errno::EOPNOTSUPP))
}
