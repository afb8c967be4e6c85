//! Writing files so that nobody ever sees half of one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::{
    behind::WriteBehind,
    place::{flush_folder, prepare},
    temporary::{create_named, folder_of, is_renaming_refused, name_beside},
};
use crate::{
    environment::Environment,
    error::{At as _, IoContext, Result},
    os, remote,
};

/// A new file that takes the place of `destination` in one step when it is [committed](Self::commit), and vanishes
/// when it is dropped before.
///
/// It has no name while it is written (`O_TMPFILE`), so that nothing stays of a writer that is killed. In the end it is
/// linked to the destination. A link cannot replace a file: if there is one, the new file is linked to a temporary name
/// beside it and renamed at once, and only who is killed between these two calls leaves it there.
///
/// Where the file system has no files without names, it is written under a temporary one. Whatever has such a name is
/// locked by its writer, so the next writer for the same destination on the same host knows the files of dead ones,
/// and removes them.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Its name until it is committed, if it has one.
    temporary: Option<PathBuf>,
    destination: PathBuf,
}

impl NewFile {
    /// Begins a file in the folder of `destination`, which is created if it is missing. Where that is a symbolic link,
    /// its target is meant.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) for a folder or file that cannot be written;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a URL.
    pub fn create(destination: &Path) -> Result<Self> {
        Self::create_like(destination, destination)
    }

    /// [`create`](Self::create) with the group and the mode of `like`, a file that `destination` is to be renamed to.
    ///
    /// # Errors
    /// Those of `create`.
    pub fn create_like(destination: &Path, like: &Path) -> Result<Self> {
        remote::refuse(destination, "only a file can be written here, not an object")?;
        let destination = prepare(destination)?;
        let replaced = fs::metadata(like).ok();
        // Nobody may open it meanwhile who might not open what it replaces.
        let mode = if replaced.is_some() { 0o600 } else { 0o666 };
        let (file, temporary) = create(&destination, mode)
            .during("cannot create a temporary file in its folder", &destination)?;
        let this = Self { file, temporary, destination };
        if let Some(old) = replaced {
            let set = os::set_access(&this.file, &old);
            set.during("cannot set the permissions of the new file", &this.destination)?;
        }
        Ok(this)
    }

    /// One that another program has begun by [`create`](Self::create), of which these are the parts.
    #[must_use]
    pub const fn adopt(file: File, temporary: Option<PathBuf>, destination: PathBuf) -> Self {
        Self { file, temporary, destination }
    }

    /// Where it will be, behind any symbolic link.
    #[must_use]
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether it is written under a temporary name.
    #[must_use]
    pub const fn has_name(&self) -> bool {
        self.temporary.is_some()
    }

    /// Writes `bytes` as a part of a small file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).during("cannot write", &self.destination)
    }

    /// The parts: the file, its temporary name, and the destination, behind any symbolic link. Whoever has them is to
    /// remove what has the name.
    pub fn into_parts(mut self) -> (io::Result<File>, Option<PathBuf>, PathBuf) {
        (self.file.try_clone(), self.temporary.take(), self.destination.clone())
    }

    /// Makes the file durable and puts it in the destination's place; returns its length in bytes.
    ///
    /// Where the file system has no renaming, or the destination is a mount point (a file that a container was given),
    /// the finished file is copied over the destination instead. That is not one step: whoever reads meanwhile, or
    /// after a crash, finds a file without a trailer, and mappings of the old file change.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io); the destination is then what it was, unless only flushing its folder
    /// or such a copy failed.
    pub fn commit(self) -> Result<u64> {
        self.commit_if(|| Ok(()))
    }

    /// [`commit`](Self::commit) if `may`, asked when nothing is left to do but to put the file in place, does not fail.
    ///
    /// # Errors
    /// That of `may`, and as `commit`.
    pub fn commit_if(mut self, may: impl FnOnce() -> Result<()>) -> Result<u64> {
        let bytes = self.make_durable()?;
        may()?;
        self.put_in_place()?;
        flush_folder(folder_of(&self.destination))?;
        Ok(bytes)
    }

    /// Flushes the file to the disk; returns its length in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn make_durable(&self) -> Result<u64> {
        let bytes = self.file.metadata().during("cannot stat", &self.destination)?.len();
        self.file.sync_all().during("cannot flush to disk", &self.destination)?;
        Ok(bytes)
    }

    /// Puts the file in the destination's place, but leaves their folder to be flushed.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn put_in_place(&mut self) -> Result<()> {
        let path = self.destination.clone();
        self.replace().during("cannot put the new file in place of", &path)
    }

    fn replace(&mut self) -> io::Result<()> {
        let temporary = match self.temporary.take() {
            Some(name) => name,
            None if os::link(&self.file, &self.destination).is_ok() => return Ok(()),
            None => self.named()?,
        };
        // Until it is renamed, the name is for `drop` to remove.
        let temporary = self.temporary.insert(temporary);
        os::admit_readers(&self.file);
        match fs::rename(&*temporary, &self.destination) {
            Err(error) if is_renaming_refused(&error) => copy(
                &self.file,
                OpenOptions::new().write(true).create(true).truncate(true),
                &self.destination,
            ),
            renamed => renamed.map(|()| self.temporary = None),
        }
    }

    /// Gives the file a temporary name.
    fn named(&mut self) -> io::Result<PathBuf> {
        let name = name_beside(&self.destination);
        // Before it has the name: whoever finds that without a lock takes its writer for dead.
        let _ = self.file.try_lock();
        match os::link(&self.file, &name) {
            Ok(()) => Ok(name),
            // Where files without a name cannot get one after all, a copy can.
            Err(_) => self.copied(),
        }
    }

    /// Puts a copy of the file, which has a temporary name, in its place.
    fn copied(&mut self) -> io::Result<PathBuf> {
        let (file, name) = create_named(&self.destination, 0o600)?;
        let copied = self
            .file
            .metadata()
            .and_then(|old| os::set_access(&file, &old))
            .and_then(|()| copy(&self.file, OpenOptions::new().write(true), &name));
        copied.inspect_err(|_| drop(fs::remove_file(&name)))?;
        self.file = file;
        Ok(name)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            let _ = fs::remove_file(name);
        }
    }
}

/// A [`NewFile`] whose bytes come in order, and are brought to the disk by threads.
#[derive(Debug)]
pub struct AtomicFile {
    bytes: WriteBehind,
    new: NewFile,
}

impl AtomicFile {
    /// Begins a file of about `expected_bytes` (reserved at once, so that a full disk shows before the work is done).
    ///
    /// From a few MiB on it is written past the page cache, unless `FLASHPACK_DIRECT_IO=0` or the file system refuses.
    ///
    /// # Errors
    /// Those of [`NewFile::create`]; [`ErrorKind::Io`](crate::ErrorKind::Io) if the disk is full;
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a malformed environment variable.
    pub fn create(destination: &Path, expected_bytes: u64) -> Result<Self> {
        Self::create_like(destination, destination, expected_bytes)
    }

    /// [`create`](Self::create) with the group and the mode of `like`, a file that `destination` is to be renamed to.
    ///
    /// # Errors
    /// Those of `create`.
    pub fn create_like(destination: &Path, like: &Path, expected_bytes: u64) -> Result<Self> {
        let new = NewFile::create_like(destination, like)?;
        let direct = Environment::read()?.direct_io.unwrap_or(true);
        let same = new.file.try_clone().during("cannot open", &new.destination)?;
        let bytes = WriteBehind::new(same, direct).at(&new.destination)?;
        let this = Self { bytes, new };
        this.reserve(expected_bytes)?;
        Ok(this)
    }

    /// Where it will be, behind any symbolic link.
    #[must_use]
    pub fn destination(&self) -> &Path {
        &self.new.destination
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), naming the destination, perhaps for bytes that were appended before.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.write(bytes).at(&self.new.destination)
    }

    /// Makes the file durable and puts it in the destination's place; returns its length in bytes.
    ///
    /// # Errors
    /// As [`NewFile::commit`], perhaps of bytes that were appended before.
    pub fn commit(self) -> Result<u64> {
        self.commit_if(|| Ok(()))
    }

    /// [`commit`](Self::commit) if `may`, asked when nothing is left to do but to put the file in place, does not fail.
    ///
    /// # Errors
    /// That of `may`, and as `commit`.
    pub fn commit_if(self, may: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.finish()?.commit_if(may)
    }

    /// The file with all its bytes, to be put in place.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), perhaps of bytes that were appended before.
    pub fn finish(mut self) -> Result<NewFile> {
        self.bytes.finish().at(&self.new.destination)?;
        Ok(self.new)
    }

    /// Reserves disk blocks, and the length: several direct writes run at a time only within it. File systems that
    /// cannot reserve are written to as they are.
    fn reserve(&self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let action = format!("cannot reserve {bytes} bytes");
        os::reserve(&self.new.file, bytes).during(&action, &self.new.destination)
    }
}

/// A new file for `destination`, without a name if the file system allows that, else under a temporary one.
fn create(destination: &Path, mode: u32) -> io::Result<(File, Option<PathBuf>)> {
    match os::create_nameless(folder_of(destination), mode)? {
        Some(file) => Ok((file, None)),
        None => create_named(destination, mode).map(|(file, name)| (file, Some(name))),
    }
}

/// Copies all of `from` to what `options` open at `to`, and flushes it.
fn copy(mut from: &File, options: &OpenOptions, to: &Path) -> io::Result<()> {
    from.rewind()?;
    let mut to = options.open(to)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()
}

/// Puts the finished file at `from` in the place of `to`, but leaves their folder to be flushed. What cannot be renamed,
/// as on another file system, is copied first.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io).
pub fn move_in_place(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if is_renaming_refused(&error) => {
            let mut new = NewFile::create(to)?;
            let copied = os::open(from).and_then(|mut from| io::copy(&mut from, &mut new.file));
            copied.during("cannot write", to)?;
            new.make_durable()?;
            new.put_in_place()
        }
        renamed => renamed.during("cannot put the new file in place of", to),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn files_that_cannot_be_named_after_all_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("model");
        fs::write(&destination, b"old").unwrap();
        fs::set_permissions(&destination, Permissions::from_mode(0o604)).unwrap();
        let mut new = NewFile::create(&destination).unwrap();
        new.write(b"new").unwrap();
        new.temporary = Some(new.copied().unwrap());
        new.commit().unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"new");
        assert_eq!(fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o604);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
