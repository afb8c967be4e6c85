//! Writing: new files that take the place of others in one step.

mod atomic;
mod behind;
mod growing;
mod place;
pub mod temporary;

use std::{
    fs::{self, Metadata},
    path::Path,
};

pub use atomic::{AtomicFile, NewFile, move_in_place};
pub use growing::{Finished, Growing, NewObject};
pub use place::{flush_folder, prepare, refuse_irregular};

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
