//! Writing: new files that take the place of others in one step.

mod atomic;
mod behind;
mod growing;
pub mod temporary;

use std::{
    fs::{self, Metadata},
    path::Path,
};

pub use atomic::{AtomicFile, NewFile, flush_folder, refuse_irregular};
pub use growing::{Finished, Growing, NewObject};

use crate::{
    error::{Error, ErrorKind, IoContext as _, Result},
    os::Identity,
};

/// Refuses to replace a file if it is not what it was `before`: what took its place, or was written to it, is not to be lost.
///
/// # Errors
/// [`ErrorKind::Io`].
pub fn refuse_changed(path: &Path, before: &Metadata) -> Result<()> {
    let now = fs::metadata(path).during("cannot stat", path)?;
    if Identity::of(&now) == Identity::of(before) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, "was changed while the file that replaces it was written: try again")
        .at(path))
}
