//! Where a new file goes: behind symbolic links, and never in the place of what no file may replace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::temporary::{folder_of, remove_abandoned};
use crate::{
    error::{Error, ErrorKind, IoContext as _, Result},
    os::{self, errno},
};

/// Makes ready for a file at `destination`: creates its folder, and removes what dead writers have left there. Returns
/// its place, which a symbolic link may lead to.
///
/// # Errors
/// [`ErrorKind::Io`], also for what no file may replace.
pub fn prepare(destination: &Path) -> Result<PathBuf> {
    let place = follow_link(destination)?;
    refuse_irregular(&place)?;
    let folder = folder_of(&place);
    create_folder(folder).during("cannot create the folder", folder)?;
    remove_abandoned(&place);
    Ok(place)
}

/// Folders cannot be replaced by a file, device nodes and pipes must not be.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn refuse_irregular(destination: &Path) -> Result<()> {
    match fs::metadata(destination) {
        Ok(old) if old.is_dir() => {
            Err(Error::io("cannot write", &os::error_of(errno::EISDIR)).at(destination))
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
    Err(Error::io("cannot write", &os::error_of(errno::ELOOP)).at(&path))
}

/// Creates a folder and those above it that are missing; what was created is durable.
fn create_folder(folder: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(folder)?;
    missing.into_iter().try_for_each(|created| os::sync_folder(folder_of(created)))
}

/// Flushes the folder's entries to the disk.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn flush_folder(folder: &Path) -> Result<()> {
    os::sync_folder(folder).during("cannot flush the folder to disk", folder)
}
