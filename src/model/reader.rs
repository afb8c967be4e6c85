//! An open FlashPack file: its source, its validated index, its footer's text.

use std::path::Path;

use crate::{
    error::{At, Error, Result, zeroed},
    format::{
        Index, MAGIC, TRAILER_BYTES, footer,
        foreign::{self, Foreign},
    },
    io::{FileSource, Input, Source},
};

/// Bytes read from the file's end at first: with most footers that is all it takes.
const TAIL_BYTES: u64 = 64 << 10;

/// Has the kernel fetch what [`Reader::new`] reads first, so that one wait brings all of it.
pub(crate) fn expect_tail(file: &Input) {
    if let Some(file) = file.file() {
        file.expect(&(file.len().saturating_sub(TAIL_BYTES)..file.len()));
    }
}

/// What the file of `source` is, if it is one of the formats that are known and not read.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io).
pub(crate) fn recognise(source: &impl Source) -> Result<Option<Foreign>> {
    let part = |from: u64| {
        let mut bytes = zeroed((source.len() - from).min(foreign::START_BYTES as u64)).at(source.path())?;
        source.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    };
    let (start, end) = (part(0)?, part(source.len().saturating_sub(foreign::START_BYTES as u64))?);
    Ok(foreign::recognise(&start, &end, source.len()))
}

/// The error of a file without a footer, with what the file is instead.
fn named(error: Error, foreign: Option<Foreign>) -> Error {
    match foreign {
        Some(Foreign { what, .. }) => {
            let words = error.to_string();
            let words = words.split(':').next().unwrap_or_default();
            Error::format(format!("{words}: this is no FlashPack file; it is {what}"))
        }
        _ => error,
    }
}

/// Where the footer of `source`, which ends with `trailer`, begins, and its length in bytes.
fn locate(source: &impl Source, trailer: &[u8]) -> Result<(u64, usize)> {
    match footer::locate(source.len(), trailer) {
        Ok(found) => Ok(found),
        Err(error) if trailer.ends_with(&MAGIC) => Err(error.at(source.path())),
        Err(error) => Err(named(error, recognise(source)?).at(source.path())),
    }
}

/// Refuses a file of another format.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::Format`](crate::ErrorKind::Format).
pub(crate) fn expect_flashpack(source: &impl Source) -> Result<()> {
    let bytes = source.len().min(TRAILER_BYTES as u64);
    let mut trailer = zeroed(bytes).at(source.path())?;
    source.read_exact_at(&mut trailer, source.len() - bytes)?;
    locate(source, &trailer).map(drop)
}

/// A file whose footer has been read and validated.
///
/// ```
/// # use flashpack::{Progress, Reader, format::{DType, layout::{Order, TensorSpec}}, pack::Packer};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.flashpack");
/// # let bias = TensorSpec { name: "bias".into(), dtype: DType::Uint8, shape: vec![3], tied_to: None };
/// # let mut file = Packer::create(&path, &[bias], Order::Given, 0, Default::default(), Progress::SILENT)?;
/// # file.write(&[7, 8, 9])?;
/// # file.finish()?;
/// let reader = Reader::open(&path)?;
/// let index = reader.index();
/// let record = &index.records()[0];
/// assert_eq!((record.name(), index.file_range(record)), ("bias", 0..3));
/// # Ok::<(), flashpack::Error>(())
/// ```
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
        let (offset, json_bytes) = locate(&source, &tail[trailer..])?;
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
