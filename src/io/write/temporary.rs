//! Temporary names beside a destination, and what dead writers have left under such names.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::os::{self, errno, is_any_of};

/// Every temporary file's name contains this, between the destination's name and what is unique to its writer.
const TEMP_MARK: &str = ".flashpack-tmp-";
/// Ends the name of a file that its writer has yet to lock.
const UNLOCKED: &str = "-new";
/// The file in a temporary folder that its owner locks.
const LOCK: &str = "lock";
/// How long a writer may take to lock its file.
const LOCKING_TIME: Duration = Duration::from_secs(1);

/// The folder that `path` lies in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name beside `destination` that nothing has yet.
#[must_use]
pub fn name_beside(destination: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    let mut name = prefix(destination);
    name.push(format!("{}-{}-{nanos}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    folder_of(destination).join(name)
}

/// Creates an empty file under a temporary name, and locks it until it is closed.
pub(super) fn create_named(destination: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    let (name, unlocked) = names_beside(destination);
    let mut options = OpenOptions::new();
    let file = os::set_mode(options.read(true).write(true).create_new(true), mode).open(&unlocked)?;
    // Without locks (some network file systems) or renaming, abandoned files stay; nothing else depends on them.
    if file.try_lock().is_err() {
        return Ok((file, unlocked));
    }
    // Whoever finds the other name without a lock knows that its writer is dead.
    match fs::rename(&unlocked, &name) {
        Ok(()) => Ok((file, name)),
        Err(error) if is_renaming_refused(&error) => Ok((file, unlocked)),
        Err(error) => {
            let _ = fs::remove_file(&unlocked);
            Err(error)
        }
    }
}

/// A name that nothing has yet, and the one before its owner holds the lock.
fn names_beside(destination: &Path) -> (PathBuf, PathBuf) {
    let name = name_beside(destination);
    let mut unlocked = name.clone().into_os_string();
    unlocked.push(UNLOCKED);
    (name, unlocked.into())
}

/// A folder under a temporary name, which is gone when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    /// Locked, as network file systems lock no folders. None when the folder is about to go.
    lock: Option<File>,
}

impl TemporaryFolder {
    /// Creates a folder beside `destination`.
    ///
    /// # Errors
    /// The system refuses the folder, a file in it, or that file's lock.
    pub fn beside(destination: &Path) -> io::Result<Self> {
        let (path, unlocked) = names_beside(destination);
        fs::create_dir(&unlocked)?;
        let lock = File::create_new(unlocked.join(LOCK));
        let lock = lock.inspect_err(|_| drop(fs::remove_dir(&unlocked)))?;
        // As of files: without locks, what is abandoned stays.
        let is_locked = lock.try_lock().is_ok();
        let mut this = Self { lock: Some(lock), path: unlocked };
        if is_locked && os::rename_in_use(&this.path, &path)? {
            this.path = path;
        }
        Ok(this)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        drop(self.lock.take()); // some systems remove no folder in which a file is open
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the temporary files and folders for `destination` whose writers died: those that nobody holds a lock on. Failures are left
/// for the next writer: they cost space, not correctness.
pub fn remove_abandoned(destination: &Path) {
    let prefix = prefix(destination);
    let Ok(entries) = fs::read_dir(folder_of(destination)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let is_locked = !name.ends_with(UNLOCKED.as_bytes());
        if name.starts_with(prefix.as_encoded_bytes()) {
            let _ = remove_if_abandoned(&entry.path(), is_locked);
        }
    }
}

/// Removes the file at `path` if its writer, which `locks` its file before it writes, is dead.
fn remove_if_abandoned(path: &Path, locks: bool) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    let is_old = || found.modified()?.elapsed().map(|age| age > LOCKING_TIME).map_err(io::Error::other);
    if found.is_dir() {
        return if locks || is_old()? { remove_unlocked_folder(path) } else { Ok(()) };
    }
    if !found.is_file() || !(locks || (found.len() == 0 && is_old()?)) {
        return Ok(());
    }
    // Whoever else may write to the folder can have put a link or a pipe in its place, which would be waited for.
    let open = |write| os::refuse_links(OpenOptions::new().read(true).write(write)).open(path);
    // NFS locks only what is open for writing, and the mode may be one that forbids that.
    let file = open(true).or_else(|_| open(false))?;
    file.try_lock().map_err(io::Error::other)?;
    fs::remove_file(path)
}

/// Removes the [`TemporaryFolder`] at `path` if its owner is dead.
fn remove_unlocked_folder(path: &Path) -> io::Result<()> {
    // It is missing where its owner died, or was to remove the folder, before the rest.
    let lock = os::refuse_links(OpenOptions::new().append(true).create(true)).open(path.join(LOCK))?;
    lock.try_lock().map_err(io::Error::other)?;
    drop(lock); // as above
    fs::remove_dir_all(path)
}

/// What the temporary names of this host for `destination` begin with. Locks need not reach further than one host, so
/// each keeps to its own.
fn prefix(destination: &Path) -> OsString {
    let mut host = DefaultHasher::new();
    os::host_name().hash(&mut host);
    let mut prefix = OsString::from(".");
    // Names have at most 255 bytes on the file systems we know: leave room for the rest.
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    let kept = name.char_indices().map(|(at, _)| at).take_while(|&at| at <= 160).last().unwrap_or(0);
    prefix.push(if name.len() <= 160 { &name } else { &name[..kept] });
    prefix.push(TEMP_MARK);
    prefix.push(format!("{:016x}-", host.finish()));
    prefix
}

/// Whether no file can be renamed to the destination, whatever its permissions.
pub(super) fn is_renaming_refused(error: &io::Error) -> bool {
    is_any_of(error, &[errno::EBUSY, errno::EXDEV, errno::ENOSYS, errno::EOPNOTSUPP])
}
