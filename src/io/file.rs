//! Regular files.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{Mode, OFlags};

use super::Source;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Files of one model that may be open at a time, each possibly twice: far below any limit of a process.
pub const MAX_OPEN_FILES: usize = 32;

/// A regular file opened for reading, with the length it had then.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    len: u64,
    identity: Identity,
    flags: OFlags,
    handle: Handle,
}

/// What a file is known by when it is opened again: device, inode, length, time of the last change.
type Identity = (u64, u64, u64, i64, i64);

#[derive(Debug)]
enum Handle {
    Held(Arc<File>),
    /// Opened again when it is used.
    Shelved(Arc<Shelf>),
}

impl FileSource {
    /// Opens `path` read-only. Never blocks: a FIFO is refused, not waited for.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if `path` cannot be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).during("cannot open", path)?);
        let metadata = file.metadata().during("cannot stat", path)?;
        if metadata.is_dir() {
            return Err(Error::io("cannot read", &rustix::io::Errno::ISDIR.into()).at(path));
        }
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Io, "is not a regular file").at(path));
        }
        Ok(Self {
            path: path.to_owned(),
            len: metadata.len(),
            identity: identity(&metadata),
            flags,
            handle: Handle::Held(Arc::new(file)),
        })
    }

    /// The same file, which from now on `shelf` opens and closes as it is used.
    #[must_use]
    pub fn on_shelf(self, shelf: &Arc<Shelf>) -> Self {
        Self { handle: Handle::Shelved(Arc::clone(shelf)), ..self }
    }

    /// Opens the same file once more, with `flags` beside its own.
    ///
    /// # Errors
    /// The system refuses that, or another file has taken the path.
    pub(super) fn again(&self, flags: OFlags) -> io::Result<Self> {
        let flags = self.flags | flags;
        let handle = match &self.handle {
            Handle::Held(_) => Handle::Held(Arc::new(open_again(&self.path, flags, self.identity)?)),
            Handle::Shelved(shelf) => Handle::Shelved(Arc::clone(shelf)),
        };
        let again = Self { path: self.path.clone(), flags, handle, ..*self };
        again.file().map(|_| again)
    }

    /// The open file.
    ///
    /// # Errors
    /// It had to be opened again, and the system refuses that or another file has taken its path.
    pub fn file(&self) -> io::Result<Arc<File>> {
        match &self.handle {
            Handle::Held(file) => Ok(Arc::clone(file)),
            Handle::Shelved(shelf) => shelf.file(self),
        }
    }

    /// Keeps the kernel from reading more than it is asked for. Only advice: that it may be refused does not matter.
    pub fn expect_scattered_reads(&self) {
        let _ = self.file().map(|file| rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random));
    }
}

impl Source for FileSource {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.handle {
            Handle::Held(file) => file.read_at(buffer, offset),
            Handle::Shelved(shelf) => shelf.file(self)?.read_at(buffer, offset),
        }
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The open ones among more files than may be open at a time: those that were used last.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<VecDeque<(Identity, OFlags, Arc<File>)>>);

impl Shelf {
    fn file(&self, source: &FileSource) -> io::Result<Arc<File>> {
        let key = (source.identity, source.flags);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open.iter().position(|(identity, flags, _)| (*identity, *flags) == key);
        let entry = match found.and_then(|place| open.remove(place)) {
            Some(entry) => entry,
            None => (key.0, key.1, Arc::new(open_again(&source.path, key.1, key.0)?)),
        };
        let file = Arc::clone(&entry.2);
        open.push_back(entry);
        if open.len() > MAX_OPEN_FILES {
            open.pop_front();
        }
        Ok(file)
    }
}

fn open_again(path: &Path, flags: OFlags, expected: Identity) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if identity(&file.metadata()?) == expected {
        return Ok(file);
    }
    Err(io::Error::other("the file was changed or replaced after it was opened"))
}

fn identity(metadata: &std::fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}
