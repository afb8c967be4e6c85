//! What the read engine reads from.

use std::{io, path::Path};

use crate::error::{Error, ErrorKind, Result};

/// Random access to a fixed number of bytes, from several threads at once.
pub trait Source: Sync {
    /// Reads into `buffer` from `offset`, as `pread` does: fewer bytes than asked are no error, 0 is the end.
    ///
    /// # Errors
    /// Whatever the medium reports.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Length in bytes when the source was opened.
    fn len(&self) -> u64;

    /// Whether the source was empty when it was opened.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether reads, or some of them, go past the page cache. A file system may refuse that at the first one.
    fn is_direct(&self) -> bool {
        false
    }

    /// Whether each request costs so much that a run of chunks is one, wherever its bytes go.
    fn is_far(&self) -> bool {
        false
    }

    /// Whether bytes are decoded on their way, a chunk at a time.
    fn is_encoded(&self) -> bool {
        false
    }

    /// Whether a run of chunks is best read at once, wherever its bytes go.
    fn prefers_runs(&self) -> bool {
        self.is_far() || self.is_encoded()
    }

    /// Hears that bytes from `offset` on, which it gave, are damaged. Whether it may give others the next time.
    fn distrust(&self, offset: u64, bytes: u64) -> bool {
        let _ = (offset, bytes);
        false
    }

    /// What errors call the source.
    fn path(&self) -> &Path;

    /// The file that the byte at `offset` is in, and where that file begins.
    fn file_at(&self, offset: u64) -> (&Path, u64) {
        let _ = offset;
        (self.path(), 0)
    }

    /// Fills `buffer` from `offset`, through short reads and interruptions.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], naming the path and the range; an end of file before the range's end is one, too: the
    /// source shrank after it was opened.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(ends_early(offset, buffer.len()).at(self.path())),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let action = format!("cannot read {} bytes at {offset}", buffer.len());
                    return Err(Error::io(&action, &error).at(self.path()));
                }
            }
        }
        Ok(())
    }

    /// Fills `buffers`, one after the other, from `offset`, by one request if the source is far.
    ///
    /// # Errors
    /// As [`Source::read_exact_at`].
    fn read_all_at(&self, buffers: &mut [&mut [u8]], mut offset: u64) -> Result<()> {
        for buffer in buffers {
            self.read_exact_at(buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }
}

/// The error of a source that ends at `offset`, `missing` bytes before what is wanted of it.
pub(super) fn ends_early(offset: u64, missing: usize) -> Error {
    let what = format!("ends at byte {offset}, {missing} bytes early: truncated while it was read");
    Error::new(ErrorKind::Io, what)
}
