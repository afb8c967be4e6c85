//! An open FlashPack file: its source, its validated index, its footer's text.

use std::path::Path;

use crate::{
    error::{At, Result, zeroed},
    format::{Index, TRAILER_BYTES, footer},
    io::{FileSource, Source},
};

/// Bytes read from the file's end at first: with most footers that is all it takes.
const TAIL_BYTES: u64 = 64 << 10;

/// A file whose footer has been read and validated.
#[derive(Debug)]
pub struct Reader<S = FileSource> {
    source: S,
    index: Index,
    footer: String,
}

impl Reader {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if it cannot be read, [`ErrorKind::Format`](crate::ErrorKind::Format)
    /// if it is no sound FlashPack file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(FileSource::open(path)?)
    }
}

impl<S: Source> Reader<S> {
    /// Reads and validates the footer of `source`.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn new(source: S) -> Result<Self> {
        let len = source.len();
        let mut tail = zeroed(len.min(TAIL_BYTES)).at(source.path())?;
        let tail_offset = len - tail.len() as u64;
        source.read_exact_at(&mut tail, tail_offset)?;
        let trailer = tail.len().saturating_sub(TRAILER_BYTES);
        let (offset, json_bytes) = footer::locate(len, &tail[trailer..]).at(source.path())?;
        let json = if json_bytes <= trailer {
            tail.drain(..trailer - json_bytes);
            tail.truncate(json_bytes);
            tail
        } else {
            let mut json = zeroed(json_bytes as u64).at(source.path())?;
            source.read_exact_at(&mut json, offset)?;
            json
        };
        let index = footer::parse(&json, offset).at(source.path())?;
        let footer = String::from_utf8(json).expect("the parser has seen that it is UTF-8");
        Ok(Self { source, index, footer })
    }

    /// Source, index and footer, each on its own.
    #[must_use]
    pub fn into_parts(self) -> (S, Index, String) {
        (self.source, self.index, self.footer)
    }

    /// Where the bytes come from.
    #[must_use]
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The validated index.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The footer's JSON as it stands in the file.
    #[must_use]
    pub fn footer(&self) -> &str {
        &self.footer
    }
}
