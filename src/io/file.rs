//! Regular files.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    ops::Range,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use rustix::{
    fs::{Advice, Mode, OFlags},
    io::Errno,
};

use super::Source;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Files of one model that stay open, each possibly twice: far below any limit of a process.
pub const MAX_OPEN_FILES: usize = 32;

/// A regular file opened for reading, with the length it had then. Clones share its descriptors.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: Arc<Path>,
    len: u64,
    identity: Identity,
    flags: OFlags,
    handle: Handle,
}

/// What a file is known by when it is opened again: device, inode, length, time of the last change.
type Identity = (u64, u64, u64, i64, i64);

#[derive(Clone, Debug)]
enum Handle {
    Held(Arc<Descriptors>),
    /// Opened again when it is used.
    Shelved(Arc<Shelf>),
}

/// A file that stays open, whatever takes its path meanwhile.
#[derive(Debug)]
struct Descriptors {
    buffered: Arc<File>,
    /// For direct reads, opened by the first load that wants them; `None` if the system refused that.
    direct: OnceLock<Option<Arc<File>>>,
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
            path: path.into(),
            len: metadata.len(),
            identity: identity(&metadata),
            flags,
            handle: Handle::Held(Arc::new(Descriptors { buffered: Arc::new(file), direct: OnceLock::new() })),
        })
    }

    /// The same file, which from now on the shelf, if there is one, opens and closes as it is used.
    #[must_use]
    pub fn on_shelf(self, shelf: Option<&Arc<Shelf>>) -> Self {
        match shelf {
            Some(shelf) => Self { handle: Handle::Shelved(Arc::clone(shelf)), ..self },
            None => self,
        }
    }

    /// The same file for direct reads.
    ///
    /// # Errors
    /// The system refuses them, or has refused them before.
    pub(super) fn direct(&self) -> io::Result<Self> {
        let direct = Self { flags: self.flags | OFlags::DIRECT, ..self.clone() };
        direct.file().map(|_| direct)
    }

    /// The open file.
    ///
    /// # Errors
    /// It had to be opened again, and the system refuses that or another file has taken its path.
    pub fn file(&self) -> io::Result<Arc<File>> {
        match &self.handle {
            Handle::Held(held) => held.file(self).cloned(),
            Handle::Shelved(shelf) => shelf.file(self),
        }
    }

    /// Has the kernel read `range` into the page cache, without waiting. Only advice, as [`FileSource::advise`] is.
    pub(crate) fn expect(&self, range: Range<u64>) {
        let bytes = NonZeroU64::new(range.end - range.start);
        let _ = self.file().map(|file| rustix::fs::fadvise(&file, range.start, bytes, Advice::WillNeed));
    }

    /// The number of the device that it lies on.
    pub(super) const fn device(&self) -> u64 {
        self.identity.0
    }

    /// Has the kernel read ahead as usual, or with [`Advice::Random`] no more than it is asked for. Only advice: that it
    /// may be refused does not matter.
    pub fn advise(&self, advice: Advice) {
        let _ = self.file().map(|file| rustix::fs::fadvise(&file, 0, None, advice));
    }
}

impl FileSource {
    /// Reads into `slices`, one after the other, from `offset` in one request.
    pub(super) fn read_vectored_at(&self, slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv(&*self.file()?, slices, offset)?)
    }
}

impl Source for FileSource {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.handle {
            Handle::Held(held) => held.file(self)?.read_at(buffer, offset),
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

impl Descriptors {
    /// The one that `source` reads by.
    fn file(&self, source: &FileSource) -> io::Result<&Arc<File>> {
        if !source.flags.contains(OFlags::DIRECT) {
            return Ok(&self.buffered);
        }
        let refused = || io::Error::from(io::ErrorKind::Unsupported);
        if self.direct.get().is_none() {
            let opened = match self.open_direct(source) {
                Ok(file) => Some(Arc::new(file)),
                Err(error) if is_refusal(&error) => None,
                Err(error) => return Err(error), // too many open files, say: the next load tries again
            };
            let _ = self.direct.set(opened); // or another thread has
        }
        self.direct.get().and_then(Option::as_ref).ok_or_else(refused)
    }

    /// By the descriptor, which another file's taking the path does not disturb; without /proc by the path.
    fn open_direct(&self, source: &FileSource) -> io::Result<File> {
        let held = format!("/proc/self/fd/{}", self.buffered.as_raw_fd());
        match open_again(Path::new(&held), source.flags, source.identity) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                open_again(&source.path, source.flags, source.identity)
            }
            opened => opened,
        }
    }
}

/// The open ones among more files than may be open at a time: those that were used last.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<VecDeque<(Identity, OFlags, Arc<File>)>>);

impl Shelf {
    /// A shelf for so many files; none if all of them may stay open.
    #[must_use]
    pub fn for_files(count: usize) -> Option<Arc<Self>> {
        (count > MAX_OPEN_FILES).then(Arc::default)
    }

    fn file(&self, source: &FileSource) -> io::Result<Arc<File>> {
        let key = (source.identity, source.flags);
        if let Some(file) = self.held(key) {
            return Ok(file);
        }
        // Others go on meanwhile: to open a remote file takes as long as to read it.
        let file = Arc::new(open_again(&source.path, key.1, key.0)?);
        if let Some(file) = self.held(key) {
            return Ok(file); // so did another thread
        }
        let mut open = self.lock();
        open.push_back((key.0, key.1, Arc::clone(&file)));
        if open.len() > MAX_OPEN_FILES {
            open.pop_front();
        }
        Ok(file)
    }

    /// The file, if it is open; it is the last to be closed then.
    fn held(&self, key: (Identity, OFlags)) -> Option<Arc<File>> {
        let mut open = self.lock();
        let place = open.iter().position(|(identity, flags, _)| (*identity, *flags) == key)?;
        let entry = open.remove(place)?;
        let file = Arc::clone(&entry.2);
        open.push_back(entry);
        Some(file)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Identity, OFlags, Arc<File>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the file system has no direct reads.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS];
    refusals.iter().any(|refusal| error.raw_os_error() == Some(refusal.raw_os_error()))
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
