//! What a save writes to: a file, or an object of a store.

use std::path::{Path, PathBuf};

use super::{AtomicFile, NewFile};
use crate::{
    error::{Error, Result},
    remote::{self, Upload},
};

/// A file or an object that gets its bytes in order, and has no place yet.
#[derive(Debug)]
pub enum Growing {
    /// A file.
    File(AtomicFile),
    /// An object.
    Object(NewObject),
}

impl Growing {
    /// Begins what is to be about `expected_bytes` at `destination`, a path or a URL.
    ///
    /// # Errors
    /// Those of [`AtomicFile::create`] and [`Stores::create`](crate::remote::Stores::create).
    pub fn create(destination: &Path, expected_bytes: u64) -> Result<Self> {
        match remote::url(destination) {
            Some(url) => NewObject::create(url, expected_bytes).map(Self::Object),
            None => AtomicFile::create(destination, expected_bytes).map(Self::File),
        }
    }

    /// Where it will be, as messages say it.
    #[must_use]
    pub fn destination(&self) -> &Path {
        match self {
            Self::File(file) => file.destination(),
            Self::Object(object) => &object.destination,
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), perhaps for bytes that were appended before.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Object(object) => object.write(bytes),
        }
    }

    /// What is to be put in place, with all its bytes.
    ///
    /// # Errors
    /// As [`Growing::write`].
    pub fn finish(self) -> Result<Finished> {
        Ok(match self {
            Self::File(file) => Finished::File(file.finish()?),
            Self::Object(object) => Finished::Object(object),
        })
    }
}

/// A file or an object with all its bytes, to be put in place.
#[derive(Debug)]
pub enum Finished {
    /// A file.
    File(NewFile),
    /// An object.
    Object(NewObject),
}

impl Finished {
    /// Puts it in its destination's place for good; returns its length in bytes.
    ///
    /// # Errors
    /// Those of [`NewFile::commit`] and [`NewObject::commit`].
    pub fn commit(self) -> Result<u64> {
        self.commit_if(|| Ok(()))
    }

    /// [`Finished::commit`], unless `may` then says otherwise: what was at the destination stays.
    ///
    /// # Errors
    /// That of `may`, and as `commit`.
    pub fn commit_if(self, may: impl FnOnce() -> Result<()>) -> Result<u64> {
        match self {
            Self::File(file) => file.commit_if(may),
            Self::Object(object) => may().and_then(|()| object.commit()),
        }
    }
}

/// An object that is being written.
#[derive(Debug)]
pub struct NewObject {
    /// Its URL without secrets.
    destination: PathBuf,
    upload: Box<dyn Upload>,
    bytes: u64,
}

impl NewObject {
    /// Begins the object of about `expected_bytes` that will lie at `url`.
    ///
    /// # Errors
    /// Those of [`Stores::create`](crate::remote::Stores::create);
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a folder.
    pub fn create(url: &str, expected_bytes: u64) -> Result<Self> {
        let destination = PathBuf::from(remote::shown(url));
        if remote::names_folder(url) {
            return Err(Error::argument("cannot write: it names a folder, not an object").at(&destination));
        }
        let upload = remote::stores()?.create(url, expected_bytes)?;
        Ok(Self { destination, upload, bytes: 0 })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// Those of [`Upload::write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.upload.write(bytes)
    }

    /// Sends what was appended, which is all, and frees the threads and memory for that until [`NewObject::commit`].
    ///
    /// # Errors
    /// Those of [`Upload::seal`].
    pub fn seal(&mut self) -> Result<()> {
        self.upload.seal()
    }

    /// Its length so far.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it the object at its URL; returns its length in bytes.
    ///
    /// # Errors
    /// Those of [`Upload::finish`].
    pub fn commit(self) -> Result<u64> {
        self.upload.finish()?;
        Ok(self.bytes)
    }
}
