//! Regular files.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use super::Source;
use crate::{
    error::{Error, ErrorKind, IoContext, Result},
    os::{self, FileExt as _, Identity, errno, is_any_of},
    sync::Unpoisoned as _,
};

/// Least descriptors that the files of one model keep, of each possibly two. Else it is a quarter of what the process may have: to
/// open a file again takes a request where the file system is a network's.
const LEAST_DESCRIPTORS: u64 = 32;
/// Most descriptors that the files of one model keep.
pub const MOST_DESCRIPTORS: u64 = 512;

/// A regular file opened for reading, with the length it had then. Clones share its descriptors.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: Arc<Path>,
    len: u64,
    identity: Identity,
    /// Whether reads go past the page cache.
    direct: bool,
    handle: Handle,
}

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
        let file = os::open(path).during("cannot open", path)?;
        let metadata = file.metadata().during("cannot stat", path)?;
        if metadata.is_dir() {
            return Err(Error::io("cannot read", &os::error_of(errno::EISDIR)).at(path));
        }
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Io, "is not a regular file").at(path));
        }
        Ok(Self {
            path: path.into(),
            len: metadata.len(),
            identity: Identity::of(&metadata),
            direct: false,
            handle: Handle::Held(Arc::new(Descriptors { buffered: Arc::new(file), direct: OnceLock::new() })),
        })
    }

    /// The same file, which from now on the shelf, if there is one, opens and closes as it is used.
    #[must_use]
    pub fn on_shelf(self, shelf: Option<&Arc<Shelf>>) -> Self {
        match shelf {
            Some(shelf) => {
                if let Handle::Held(held) = &self.handle {
                    shelf.put((self.identity, false), Arc::clone(&held.buffered));
                }
                Self { handle: Handle::Shelved(Arc::clone(shelf)), ..self }
            }
            None => self,
        }
    }

    /// The same file for direct reads.
    ///
    /// # Errors
    /// The system refuses them, or has refused them before.
    pub(super) fn direct(&self) -> io::Result<Self> {
        let direct = Self { direct: true, ..self.clone() };
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

    /// Has the kernel read `range` into the page cache, without waiting. Only advice, as
    /// [`FileSource::set_read_ahead`] is.
    pub(crate) fn expect(&self, range: &Range<u64>) {
        let _ = self.file().and_then(|file| os::will_need(&file, range));
    }

    /// The number of the device that it lies on.
    pub(super) const fn device(&self) -> u64 {
        self.identity.device
    }

    /// Has the kernel read ahead as usual, or no more than it is asked for. Only advice: that it may be refused does not
    /// matter.
    pub(super) fn set_read_ahead(&self, reads_ahead: bool) {
        let _ = self.file().map(|file| os::set_read_ahead(&file, reads_ahead));
    }
}

impl FileSource {
    /// Reads into `slices`, one after the other, from `offset` in one request.
    pub(super) fn read_vectored_at(&self, slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        os::read_vectored_at(&*self.file()?, slices, offset)
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
        if !source.direct {
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

    fn open_direct(&self, source: &FileSource) -> io::Result<File> {
        checked(os::open_again_direct(&self.buffered, &source.path)?, source.identity)
    }
}

/// The open ones among more files than may be open at a time: those that were used last.
#[derive(Debug)]
pub struct Shelf {
    open: Mutex<VecDeque<(Key, Arc<File>)>>,
    most: usize,
}

/// Which file, and whether it is open for direct reads.
type Key = (Identity, bool);

impl Shelf {
    /// A shelf for so many files; none if all of them may stay open.
    #[must_use]
    pub fn for_files(count: usize) -> Option<Arc<Self>> {
        let limit = os::open_file_limit().unwrap_or(u64::MAX);
        let most =
            usize::try_from((limit / 4).clamp(LEAST_DESCRIPTORS, MOST_DESCRIPTORS)).unwrap_or(usize::MAX);
        (2 * count > most).then(|| Arc::new(Self::new(most)))
    }

    /// A shelf that holds `most` descriptors.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { open: Mutex::new(VecDeque::new()), most }
    }

    fn file(&self, source: &FileSource) -> io::Result<Arc<File>> {
        let key = (source.identity, source.direct);
        if let Some(file) = self.held(key) {
            return Ok(file);
        }
        // Others go on meanwhile: to open a remote file takes as long as to read it.
        let open = if source.direct { os::open_direct } else { os::open };
        let file = Arc::new(checked(open(&source.path)?, source.identity)?);
        if let Some(file) = self.held(key) {
            return Ok(file); // so did another thread
        }
        self.put(key, Arc::clone(&file));
        Ok(file)
    }

    fn put(&self, key: Key, file: Arc<File>) {
        let mut open = self.lock();
        open.push_back((key, file));
        let closed = if open.len() > self.most { open.pop_front() } else { None };
        drop(open); // closing takes a request, too
        drop(closed);
    }

    /// The file, if it is open; it is the last to be closed then.
    fn held(&self, key: Key) -> Option<Arc<File>> {
        let mut open = self.lock();
        let place = open.iter().position(|(held, _)| *held == key)?;
        let entry = open.remove(place)?;
        let file = Arc::clone(&entry.1);
        open.push_back(entry);
        Some(file)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Arc<File>)>> {
        self.open.lock().unpoisoned()
    }
}

/// Whether the file system has no direct reads.
fn is_refusal(error: &io::Error) -> bool {
    is_any_of(error, &[errno::EINVAL, errno::EOPNOTSUPP, errno::ENOSYS])
}

/// `file`, opened again, if it is still what it was.
fn checked(file: File, expected: Identity) -> io::Result<File> {
    if Identity::of(&file.metadata()?) == expected {
        return Ok(file);
    }
    Err(io::Error::other("the file was changed or replaced after it was opened"))
}
