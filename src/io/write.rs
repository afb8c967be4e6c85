//! Writing files so that nobody ever sees half of one.

use std::{
    ffi::OsString,
    fs::{self, DirEntry, File, OpenOptions, Permissions},
    io::{self, Seek as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{FallocateFlags, OFlags};

use super::behind::WriteBehind;
use crate::{
    error::{At as _, Error, ErrorKind, IoContext, Result},
    options::Environment,
};

/// Every temporary file's name contains this, between the destination's name and a number unique to its writer.
const TEMP_MARK: &str = ".flashpack-tmp-";

/// A new file that takes the place of `destination` in one step when it is [committed](Self::commit), and vanishes
/// when it is dropped before.
///
/// It is written as a sibling of the destination (of the link's target, if that is a symbolic link) under an
/// exclusive lock, by which later writers tell files in the making from those of dead processes, and remove the latter.
#[derive(Debug)]
pub struct AtomicFile {
    bytes: WriteBehind,
    temp: PathBuf,
    destination: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Begins a file of about `expected_bytes` (reserved at once, so that a full disk shows before the work is done).
    ///
    /// From a few MiB on it is written past the page cache, unless `FLASHPACK_DIRECT_IO=0` or the file system refuses.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the folder cannot be written to or the disk is full; [`ErrorKind::Argument`] for a malformed
    /// environment variable.
    pub fn create(destination: &Path, expected_bytes: u64) -> Result<Self> {
        let direct = Environment::read()?.direct_io.unwrap_or(true);
        let destination = follow_link(destination)?;
        refuse_irregular(&destination)?;
        let folder = folder_of(&destination);
        fs::create_dir_all(folder).during("cannot create the folder", folder)?;
        remove_abandoned(&destination);
        let temp = temp_path(&destination);
        let replaced = fs::metadata(&destination).ok().map(|old| old.permissions().mode() & 0o7777);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(replaced.unwrap_or(0o666) & 0o666) // at no time by a wider mode than what it replaces
            .custom_flags(OFlags::CLOEXEC.bits().cast_signed())
            .open(&temp)
            .during("cannot create a temporary file in its folder", &destination)?;
        // Without locks (some network file systems) abandoned files stay; nothing else depends on them.
        let _ = file.try_lock();
        let bytes = WriteBehind::new(file, direct).inspect_err(|_| drop(fs::remove_file(&temp)));
        let bytes = bytes.at(&destination)?;
        let this = Self { bytes, temp, destination, committed: false };
        if let Some(mode) = replaced {
            let set = this.bytes.file().set_permissions(Permissions::from_mode(mode));
            set.during("cannot set the permissions of the new file", &this.destination)?;
        }
        this.reserve(expected_bytes)?;
        Ok(this)
    }

    /// Where it is until it is committed.
    #[must_use]
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// Where it will be, behind any symbolic link.
    #[must_use]
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], naming the destination, perhaps for bytes that were appended before.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.write(bytes).at(&self.destination)
    }

    /// Makes the file durable and puts it in the destination's place; returns its length in bytes.
    ///
    /// Where the file system has no renaming, or the destination is a mount point (a file that a container was given),
    /// the finished file is copied over the destination instead. That is not one step: whoever reads meanwhile, or
    /// after a crash, finds a file without a trailer, and mappings of the old file change.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; the destination is then what it was, unless only flushing its folder
    /// or such a copy failed.
    pub fn commit(self) -> Result<u64> {
        self.commit_if(|| Ok(()))
    }

    /// [`commit`](Self::commit) if `may`, asked when nothing is left to do but to put the file in place, does not fail.
    ///
    /// # Errors
    /// That of `may`, and as `commit`.
    pub fn commit_if(mut self, may: impl FnOnce() -> Result<()>) -> Result<u64> {
        let path = self.destination.clone();
        self.bytes.finish().at(&path)?;
        let bytes = self.bytes.file().metadata().during("cannot stat", &path)?.len();
        self.bytes.file().sync_all().during("cannot flush to disk", &path)?;
        may()?;
        match fs::rename(&self.temp, &path) {
            Err(error) if is_renaming_refused(&error) => {
                self.copy_over().during("cannot copy over", &path)?;
            }
            renamed => {
                renamed.during("cannot put the new file in place of", &path)?;
                self.committed = true;
            }
        }
        let folder = folder_of(&path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        match synced {
            // Some file systems cannot flush a folder; their renames are as durable as they get.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(bytes),
            synced => synced.during("cannot flush the folder to disk", folder).map(|()| bytes),
        }
    }

    fn copy_over(&self) -> io::Result<()> {
        let mut written = self.bytes.file();
        written.rewind()?;
        let mut destination =
            OpenOptions::new().write(true).create(true).truncate(true).open(&self.destination)?;
        io::copy(&mut written, &mut destination)?;
        destination.sync_all()
    }

    /// Reserves disk blocks, and the length: several direct writes run at a time only within it. File systems that
    /// cannot reserve are written to as they are.
    fn reserve(&self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(self.bytes.file(), FallocateFlags::empty(), 0, bytes) {
            Err(errno @ (rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::FBIG)) => {
                Err(Error::io(&format!("cannot reserve {bytes} bytes"), &errno.into()).at(&self.destination))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Whether no file can be renamed to the destination, whatever its permissions.
fn is_renaming_refused(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [Errno::BUSY, Errno::XDEV, Errno::NOSYS, Errno::OPNOTSUPP];
    refusals.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Folders cannot be replaced by a file, device nodes and pipes must not be.
fn refuse_irregular(destination: &Path) -> Result<()> {
    match fs::metadata(destination) {
        Ok(old) if old.is_dir() => {
            Err(Error::io("cannot write", &rustix::io::Errno::ISDIR.into()).at(destination))
        }
        Ok(old) if !old.is_file() => {
            Err(Error::new(ErrorKind::Io, "cannot write: is not a regular file").at(destination))
        }
        _ => Ok(()),
    }
}

/// The file behind a symbolic link, even one that points to nothing yet.
fn follow_link(path: &Path) -> Result<PathBuf> {
    /// As many links as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(Error::io("cannot write", &rustix::io::Errno::LOOP.into()).at(&path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temp_prefix(destination: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    // Names have at most 255 bytes on the file systems we know: leave room for mark and number.
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    let kept = name.char_indices().map(|(at, _)| at).take_while(|&at| at <= 180).last().unwrap_or(0);
    prefix.push(if name.len() <= 180 { &name } else { &name[..kept] });
    prefix.push(TEMP_MARK);
    prefix
}

fn temp_path(destination: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    let mut name = temp_prefix(destination);
    name.push(format!("{}-{}-{nanos}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    folder_of(destination).join(name)
}

/// Removes temporary files for `destination` whose writers died: those that nobody holds a lock on.
/// Failures are left for the next writer: they cost space, not correctness.
fn remove_abandoned(destination: &Path) {
    let prefix = temp_prefix(destination);
    let Ok(entries) = fs::read_dir(folder_of(destination)) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if is_ours && is_abandoned(&entry).unwrap_or(false) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_abandoned(entry: &DirEntry) -> io::Result<bool> {
    let file = entry.metadata()?;
    // One this young may not have been locked by its writer yet.
    let old = file.modified()?.elapsed().is_ok_and(|age| age.as_secs() >= 1);
    if !file.is_file() || !old {
        return Ok(false);
    }
    // Whoever else may write to the folder can have put a link or a pipe in its place, which would be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(entry.path())?;
    Ok(opened.try_lock().is_ok())
}
