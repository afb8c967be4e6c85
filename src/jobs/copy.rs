//! Copying a file or an object as it is.

use std::path::Path;

use crate::{
    error::{At as _, Result, zeroed},
    io::{Input, Source as _, read::InOrder, write::Growing},
    progress::Progress,
};

/// Bytes that are read at a time.
const STEP_BYTES: u64 = 8 << 20;

/// Copies what lies at `path` to `destination`, paths or URLs, where it appears whole; returns its length in bytes.
///
/// # Errors
/// Those of [`Input::open`], of reading, and of [`Growing`].
pub fn copy(path: &Path, destination: &Path, progress: Progress<'_>) -> Result<u64> {
    let source = Input::open(path, None)?;
    let bytes = source.len();
    let mut file = Growing::create(destination, bytes)?;
    let mut buffer = zeroed(bytes.min(STEP_BYTES)).at(source.path())?;
    progress.start(bytes);
    let (mut input, mut position) = (InOrder::new(&source), 0);
    while position < bytes {
        let step = STEP_BYTES.min(bytes - position);
        let piece = &mut buffer[..usize::try_from(step).expect("at most STEP_BYTES")];
        input.read_exact_at(piece, position, bytes)?;
        file.write(piece)?;
        progress.advance(step)?;
        position += step;
    }
    file.finish()?.commit()
}
