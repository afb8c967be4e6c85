//! The folder of a cache: entries by name, bounded together.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use rustix::{fs::OFlags, process::geteuid};

/// Where entries are, within the folder that the user names; the number is that of their layout.
const FOLDER: &str = "flashpack-1";
/// Locked by the process that removes entries.
const LOCK: &str = "lock";
/// The files of an entry are called after it, and this.
const DATA: &str = "data";
const MAP: &str = "map";
/// Characters of an entry's name: a SHA-256 in hexadecimal digits.
const NAME_DIGITS: usize = 64;
/// `st_blocks` counts these, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;
/// How often a lock is asked for that another process holds for a moment, and the time between.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// A folder of entries that belong to this user.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Bytes that all entries may take; by default half of what would be free without them.
    limit: Option<u64>,
}

/// An entry's files, locked as in use until they are closed.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) map: File,
    pub(super) data: File,
    /// The data once more, to read and write past the page cache, if that can be.
    pub(super) direct: Option<File>,
}

struct Found {
    name: String,
    bytes: u64,
    used: SystemTime,
}

impl Folder {
    /// Opens the cache in `parent`, where each user has a folder, and makes what is missing.
    ///
    /// # Errors
    /// The system's; a folder that others may write to, or that is another user's.
    pub(super) fn open(parent: &Path, limit: Option<u64>) -> io::Result<Self> {
        let path = parent.join(format!("{FOLDER}-{}", geteuid().as_raw()));
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let found = fs::symlink_metadata(&path)?;
        let is_safe = found.is_dir() && is_ours(&found) && found.mode() & 0o022 == 0;
        if is_safe { Ok(Self { path, limit }) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    /// Opens the entry `name`, which is now the one used last, and makes it if there is none.
    ///
    /// # Errors
    /// The system's; locks that the file system does not have.
    pub(super) fn entry(&self, name: &str) -> io::Result<Files> {
        for _ in 0..TRIES {
            let map = open_or_create(&self.file(name, MAP))?;
            // Whoever removes it holds the lock for a moment, and its name is another file's afterwards.
            if map.try_lock_shared().is_ok() && map.metadata()?.nlink() == 1 {
                map.set_modified(SystemTime::now())?;
                let data = open_or_create(&self.file(name, DATA))?;
                return Ok(Files { map, direct: open_direct(&data), data });
            }
            thread::sleep(PAUSE);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Removes entries that nobody uses, those used longest ago first, until all of them and `more` bytes keep to the
    /// limit; whether they do. While another process is stuck at that, they are taken to.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn make_room(&self, more: u64) -> io::Result<bool> {
        let lock = open_or_create(&self.path.join(LOCK))?;
        if !(0..TRIES).any(|_| {
            lock.try_lock().is_ok() || {
                thread::sleep(PAUSE);
                false
            }
        }) {
            return Ok(true);
        }
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| entry.used);
        let mut used: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let limit = self.limit.map_or_else(|| self.half(used), Ok)?;
        for entry in &entries {
            if used + more <= limit {
                break;
            }
            if self.remove(&entry.name).is_ok() {
                used -= entry.bytes;
            }
        }
        Ok(used + more <= limit)
    }

    /// Half of what would be free if entries of `used` bytes were not there.
    fn half(&self, used: u64) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize).midpoint(used))
    }

    /// What looks like an entry of ours. Other files stay out of it.
    fn entries(&self) -> io::Result<Vec<Found>> {
        let mut entries: Vec<Found> = Vec::new();
        let mut files = fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            let path = file.path();
            let Some((name, found)) = name_of(&path).zip(fs::symlink_metadata(&path).ok()) else {
                continue;
            };
            if !is_own_file(&found) {
                continue;
            }
            let (bytes, used) = (allocated(&found), found.modified()?);
            match entries.last_mut().filter(|last| last.name == name) {
                // The map comes after the data, and tells the time.
                Some(last) => (last.bytes, last.used) = (last.bytes + bytes, used),
                None => entries.push(Found { name: name.to_owned(), bytes, used }),
            }
        }
        Ok(entries)
    }

    /// Removes an entry that nobody uses. Of one without a map the lock is made first.
    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.file(name, MAP);
        let map = open_or_create(&path)?;
        map.try_lock().map_err(io::Error::other)?;
        let data = self.file(name, DATA);
        match fs::symlink_metadata(&data) {
            Ok(found) if !is_own_file(&found) => return Err(io::ErrorKind::PermissionDenied.into()),
            Ok(_) => fs::remove_file(data)?,
            Err(_) => {}
        }
        fs::remove_file(path)
    }

    fn file(&self, name: &str, suffix: &str) -> PathBuf {
        self.path.join(format!("{name}.{suffix}"))
    }
}

/// The bytes that a file takes on its disk.
pub(super) fn allocated(file: &Metadata) -> u64 {
    file.blocks() * STAT_BLOCK_BYTES
}

/// The name of the entry that a file is of, if its own is like one.
fn name_of(path: &Path) -> Option<&str> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once('.')?;
    let is_digest =
        name.len() == NAME_DIGITS && name.bytes().all(|digit| b"0123456789abcdef".contains(&digit));
    (is_digest && [DATA, MAP].contains(&suffix)).then_some(name)
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == geteuid().as_raw()
}

fn is_own_file(found: &Metadata) -> bool {
    found.is_file() && is_ours(found)
}

/// A file of our own, never one that a link leads to.
fn open_or_create(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path)?;
    if is_own_file(&file.metadata()?) { Ok(file) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// `file` for direct reads and writes, unless its file system refuses them.
fn open_direct(file: &File) -> Option<File> {
    let own_link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(direct).open(own_link).ok()
}
