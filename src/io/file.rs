//! Regular files.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::Source;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// A regular file opened for reading, with the length it had then.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    len: u64,
    path: PathBuf,
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
        Ok(Self { file, len: metadata.len(), path: path.to_owned() })
    }

    /// The open file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Keeps the kernel from reading more than it is asked for. Only advice: that it may be refused does not matter.
    pub fn expect_scattered_reads(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random);
    }
}

impl Source for FileSource {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
