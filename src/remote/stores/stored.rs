//! Objects whose bytes lie in a file of this machine.

use std::{
    env,
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{Method, Response};
use ureq::Body;

use super::{
    exchange::{Exchange, Fault, Meter},
    message::Ask,
};
use crate::{
    error::{Error, ErrorKind, IoContext as _, Result},
    os,
    remote::{Object, Traffic},
};

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;
/// Who may read a copy: its owner.
const MODE: u32 = 0o600;

/// A file that stands for an object.
#[derive(Debug)]
pub(super) struct Stored {
    file: File,
    len: u64,
    meter: Arc<Meter>,
    note: &'static str,
    shown: PathBuf,
    pinned: Option<String>,
}

impl Stored {
    /// The file at `path`, which a cache of others holds.
    pub(super) fn open(path: &Path, shown: &Path, pinned: Option<String>) -> Result<Self> {
        let file = File::open(path).during("cannot open", path)?;
        let len = file.metadata().during("cannot stat", path)?.len();
        Ok(Self {
            file,
            len,
            meter: Arc::default(),
            note: "read from the cache of huggingface_hub",
            shown: shown.to_owned(),
            pinned,
        })
    }

    /// A file without a name that `file` holds, into which the whole object was copied.
    pub(super) fn copied(
        file: File,
        meter: Arc<Meter>,
        shown: &Path,
        pinned: Option<String>,
    ) -> Result<Self> {
        let note = "its server gives no ranges: it was copied to a temporary file first";
        let len = file.metadata().during("cannot stat the copy of", shown)?.len();
        Ok(Self { file, len, meter, note, shown: shown.to_owned(), pinned })
    }
}

impl Object for Stored {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], mut offset: u64) -> Result<()> {
        for buffer in buffers {
            self.file.read_exact_at(buffer, offset).during("cannot read its copy", &self.shown)?;
            self.meter.cached(buffer.len());
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn distrust(&self, _: u64, _: u64) {}

    fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    fn note(&self) -> Option<String> {
        Some(self.note.to_owned())
    }

    fn pinned(&self) -> Option<String> {
        self.pinned.clone()
    }
}

/// A file without a name that holds the whole object, which begins to come with `answer`.
///
/// # Errors
/// The folder of temporary files does not take it, or all tries failed.
pub(super) fn copy(exchange: &mut Exchange<'_>, mut answer: Response<Body>) -> Result<File> {
    let folder = env::temp_dir();
    loop {
        let mut file = nameless(&folder).map_err(|error| refused(&folder, &error))?;
        let copied = copy_body(answer.body_mut(), &mut file, exchange);
        let Some(fault) = copied.map_err(|error| refused(&folder, &error))? else {
            return Ok(file);
        };
        exchange.failed(fault)?;
        answer = exchange.answer(&Ask::new(Method::GET))?; // this time the server might heed a range
    }
}

/// What cut the body off, if anything did.
fn copy_body(body: &mut Body, file: &mut File, exchange: &Exchange<'_>) -> io::Result<Option<Fault>> {
    let (mut buffer, mut reader) = (vec![0; COPY_BYTES], body.as_reader());
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(bytes) => {
                file.write_all(&buffer[..bytes])?;
                exchange.fetched(bytes);
            }
            Err(error) => return Ok(Some(error.into())),
        }
    }
}

/// The error of a `folder` that does not take a copy. It has no number: that would be taken for one about the object.
fn refused(folder: &Path, error: &io::Error) -> Error {
    let folder = folder.display();
    let what = format!("its server gives no ranges, and a copy cannot be written to {folder} ({error})");
    Error::new(ErrorKind::Io, format!("{what}: set TMPDIR to a folder that has room for it"))
}

/// A file in `folder` that is gone when it is closed.
fn nameless(folder: &Path) -> io::Result<File> {
    os::create_nameless(folder, MODE)?.map_or_else(|| unlinked(folder), Ok)
}

/// The same where the file system has no files without names.
fn unlinked(folder: &Path) -> io::Result<File> {
    let name = folder.join(format!("flashpack-{:016x}", RandomState::new().hash_one(0)));
    let file = File::options().read(true).write(true).create_new(true).mode(MODE).open(&name)?;
    fs::remove_file(name)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_no_copy_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let text = nameless(&missing).map_err(|error| refused(&missing, &error)).unwrap_err().to_string();
        assert!(text.contains(missing.to_str().unwrap()) && text.contains("TMPDIR"), "{text}");
        assert!(!refused(&missing, &nameless(&missing).unwrap_err()).is_not_found(), "the object is there");
    }

    #[test]
    fn copies_leave_no_name() {
        let folder = tempfile::tempdir().unwrap();
        for make in [nameless, unlinked] {
            let mut file = make(folder.path()).unwrap();
            file.write_all(b"bytes").unwrap();
            let mut bytes = [0; 5];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"bytes");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
