//! Objects of stores, as sources.

use std::{io, path::Path, sync::Arc};

use super::Source;
use crate::{
    error::Result,
    remote::{Object, Opening, Traffic, shown, stores},
};

/// One version of the object that a URL names. Clones share it.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// The URL without its secrets: what errors call it.
    path: Arc<Path>,
    object: Arc<dyn Object>,
}

impl RemoteFile {
    /// Opens the object at `url`; what is read of it is kept in `cache`, or where the environment says.
    ///
    /// # Errors
    /// Those of [`Stores::open`](crate::remote::Stores::open).
    pub fn open(url: &str, cache: Option<&Path>) -> Result<Self> {
        let path = shown(url);
        let begins_with_header = path.ends_with(".safetensors");
        let opening = Opening { cache: cache.map(Path::to_owned), begins_with_header };
        Ok(Self::new(Path::new(&path), stores()?.open(url, &opening)?))
    }

    /// `object`, which errors call `path`.
    #[must_use]
    pub fn new(path: &Path, object: Arc<dyn Object>) -> Self {
        Self { path: path.into(), object }
    }

    /// What is peculiar about reading it, if anything is.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.object.note()
    }

    /// As [`Object::pinned`].
    #[must_use]
    pub fn pinned(&self) -> Option<String> {
        self.object.pinned()
    }

    /// What reads of it have taken so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.object.traffic()
    }
}

impl Source for RemoteFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = buffer.len().min(left);
        self.read_exact_at(&mut buffer[..bytes], offset).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.read_all_at(&mut [buffer], offset)
    }

    fn read_all_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let wanted: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        if wanted > left {
            return Err(super::source::ends_early(self.len(), wanted - left).at(&self.path));
        }
        match wanted {
            0 => Ok(()),
            _ => self.object.read_exact_at(buffers, offset),
        }
    }

    fn len(&self) -> u64 {
        self.object.len()
    }

    fn is_far(&self) -> bool {
        true
    }

    fn distrust(&self, offset: u64, bytes: u64) -> bool {
        self.object.distrust(offset, bytes);
        true
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
