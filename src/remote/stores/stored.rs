//! Objects whose bytes lie in a file of this machine.

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{Method, Response};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use ureq::Body;

use super::{
    exchange::{Exchange, Fault, Meter},
    message::Ask,
};
use crate::{
    error::{IoContext as _, Result},
    remote::{Object, Traffic},
};

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;

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
/// There is no room for it, or all tries failed.
pub(super) fn copy(exchange: &mut Exchange<'_>, mut answer: Response<Body>) -> Result<File> {
    let folder = env::temp_dir();
    loop {
        let mut file = nameless(&folder).during("cannot make a temporary file in", &folder)?;
        let Some(fault) =
            copy_body(answer.body_mut(), &mut file, exchange).during("cannot write to", &folder)?
        else {
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

/// A file that is gone when it is closed: in `folder` or, where that has no files without names, in memory.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(file.into());
    }
    Ok(rustix::fs::memfd_create("flashpack", MemfdFlags::CLOEXEC)?.into())
}
