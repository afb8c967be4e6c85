//! A file of a model, and the way to its bytes.

use std::{io, path::Path, sync::Arc};

use super::{
    FileSource, RemoteFile, Source,
    file::Shelf,
    read::direct::DirectFile,
    route::{Asked, Probe, Route, Samples},
};
use crate::{error::Result, remote};

/// A file, or an object of a store, with the way that reads of it take.
#[derive(Clone, Debug)]
pub enum Input {
    /// Through the page cache.
    Buffered(FileSource),
    /// Past it.
    Direct(Arc<DirectFile>),
    /// From a store.
    Remote(RemoteFile),
}

impl Input {
    /// Opens the file at `path`, or the object if that is a URL, of which `cache` keeps a copy.
    ///
    /// # Errors
    /// Those of [`FileSource::open`] and [`RemoteFile::open`].
    pub fn open(path: &Path, cache: Option<&Path>) -> Result<Self> {
        match remote::url(path) {
            Some(url) => RemoteFile::open(url, cache).map(Self::Remote),
            None => FileSource::open(path).map(Self::Buffered),
        }
    }

    /// The same by the way that `asked` takes to it, with one of `samples` if the load must look.
    #[must_use]
    pub fn choose(&self, asked: Asked<'_>, samples: &Samples) -> (Self, Route) {
        let file = match self {
            Self::Remote(file) => return (Self::Remote(file.clone()), Route::to_store()),
            Self::Buffered(file) => file.clone(),
            Self::Direct(file) => file.buffered().clone(),
        };
        let route = Route::decide(&Probe::of(&file, asked, samples), asked);
        if !route.direct {
            return (Self::Buffered(file), route);
        }
        match DirectFile::new(file) {
            Ok(file) => (Self::Direct(file.into()), route),
            Err(file) => (Self::Buffered(file), route.refused()),
        }
    }

    /// The file as opened at first, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&FileSource> {
        match self {
            Self::Buffered(file) => Some(file),
            Self::Direct(file) => Some(file.buffered()),
            Self::Remote(_) => None,
        }
    }

    /// The object, if it is one.
    #[must_use]
    pub const fn remote(&self) -> Option<&RemoteFile> {
        match self {
            Self::Remote(file) => Some(file),
            Self::Buffered(_) | Self::Direct(_) => None,
        }
    }

    /// The same file, which from now on the shelf, if there is one, opens and closes as it is used.
    #[must_use]
    pub fn on_shelf(self, shelf: Option<&Arc<Shelf>>) -> Self {
        match self {
            Self::Buffered(file) => Self::Buffered(file.on_shelf(shelf)),
            other => other,
        }
    }

    fn source(&self) -> &dyn Source {
        match self {
            Self::Buffered(file) => file,
            Self::Direct(file) => &**file,
            Self::Remote(file) => file,
        }
    }
}

impl Source for Input {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.source().read_at(buffer, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.source().read_exact_at(buffer, offset)
    }

    fn read_all_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        self.source().read_all_at(buffers, offset)
    }

    fn len(&self) -> u64 {
        self.source().len()
    }

    fn is_direct(&self) -> bool {
        self.source().is_direct()
    }

    fn is_far(&self) -> bool {
        self.source().is_far()
    }

    fn distrust(&self, offset: u64, bytes: u64) -> bool {
        self.source().distrust(offset, bytes)
    }

    fn path(&self) -> &Path {
        self.source().path()
    }
}
