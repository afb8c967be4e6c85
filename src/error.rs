//! One error type: what went wrong, in which file, with which numbers.

use std::{
    fmt, hint, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::os::{self, errno};

/// Longest message: names and shapes in it may come from a file that is out to harm.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Classifies an [`Error`] so that a binding can raise its language's own exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The operating system refused or failed an operation; `errno` is set when it gave one.
    Io,
    /// The bytes are not a sound FlashPack (or safetensors) file.
    Format,
    /// The bytes do not match their recorded digests.
    Checksum,
    /// The file is not signed as it has to be.
    Signature,
    /// The caller passed something that cannot work.
    Argument,
    /// The request is meaningful, but not something this library does.
    Unsupported,
    /// Memory for the result could not be reserved.
    Memory,
    /// The caller asked for the operation to stop.
    Cancelled,
    /// A defect of this library.
    Internal,
}

impl ErrorKind {
    /// The name used in the machine-readable tag of [`Error::to_tagged_string`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Format => "format",
            Self::Checksum => "checksum",
            Self::Signature => "signature",
            Self::Argument => "argument",
            Self::Unsupported => "unsupported",
            Self::Memory => "memory",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// An error of this crate. `Display` gives one sentence that starts with the file's path, if one is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    kind: ErrorKind,
    errno: Option<i32>,
    path: Option<PathBuf>,
    message: String,
    /// The byte of the file that it is about, if it is about one.
    position: Option<u64>,
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that concerns no particular file yet; see [`Error::at`].
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, errno: None, path: None, message: shortened(message.into()), position: None }
    }

    /// The file is not what the format allows.
    #[must_use]
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message)
    }

    /// The caller's argument is wrong.
    #[must_use]
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Argument, message)
    }

    /// The operating system failed `action` (a verb phrase such as "cannot open").
    #[must_use]
    pub fn io(action: &str, error: &io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::OutOfMemory { ErrorKind::Memory } else { ErrorKind::Io };
        let message = format!("{action}: {error}");
        Self { kind, errno: os::number_of(error), path: None, message, position: None }
    }

    /// What was asked for is not there.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { errno: Some(errno::ENOENT), ..Self::new(ErrorKind::Io, message) }
    }

    /// Whether what was asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.errno == Some(errno::ENOENT)
    }

    /// What was asked for is not open to who asks.
    #[cfg(feature = "remote")]
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { errno: Some(errno::EACCES), ..Self::new(ErrorKind::Io, message) }
    }

    /// Names the file, unless an inner layer already named one.
    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        if self.path.is_none() {
            self.path = Some(path.to_owned());
        }
        self
    }

    /// Says which byte of the file it is about; see [`Error::earlier`].
    #[must_use]
    pub const fn from_byte(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// Of two errors the one about the earlier byte; an error about no byte goes before.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        if other.position < self.position { other } else { self }
    }

    /// What class of error this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The number of the operating system's error, as C has it, for [`ErrorKind::Io`].
    #[must_use]
    pub const fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// The message followed by a JSON tag with kind, errno and path: what crosses a language boundary. A path that is
    /// not UTF-8 is a list of its bytes there.
    #[must_use]
    pub fn to_tagged_string(&self) -> String {
        let path = self.path.as_deref().map_or(Value::Null, |path| match path.to_str() {
            Some(text) => text.into(),
            None => path.as_os_str().as_encoded_bytes().into(),
        });
        let tag = json!({"kind": self.kind.name(), "errno": self.errno, "path": path});
        format!("{self} [flashpack:{tag}]")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

/// Names the file in the error of a result; see [`Error::at`].
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at(self, path: &Path) -> Self {
        self.map_err(|error| error.at(path))
    }
}

/// Turns an operating system result into ours, naming the action and the file.
pub(crate) trait IoContext<T> {
    fn during(self, action: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn during(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(action, &error.into()).at(path))
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&end| message.is_char_boundary(end));
        message.truncate(end.unwrap_or(0));
        message.shrink_to_fit();
        message.push_str(" ...");
    }
    message
}

/// An error if `bytes` of memory cannot be had: asked before work whose own allocations would abort.
pub(crate) fn ensure_memory(bytes: u64) -> Result<()> {
    // The compiler may not see that nobody uses it.
    hint::black_box(reserved(bytes)?);
    Ok(())
}

/// `bytes` zeros, or an error where an allocation that fails would abort: for lengths that a file claims.
pub(crate) fn zeroed(bytes: u64) -> Result<Vec<u8>> {
    let (mut buffer, bytes) = reserved(bytes)?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

/// No bytes yet, and room for as many as the number says.
fn reserved(bytes: u64) -> Result<(Vec<u8>, usize)> {
    let refused = || Error::new(ErrorKind::Memory, format!("cannot reserve {bytes} bytes of memory"));
    let bytes = usize::try_from(bytes).map_err(|_| refused())?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| refused())?;
    Ok((buffer, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_hostile_files_stay_short() {
        let text = Error::format(format!("name {:?}", "\u{e9}".repeat(1 << 12))).to_string();
        assert!(text.starts_with("name \"\u{e9}") && text.ends_with(" ..."));
        assert!(text.len() <= MAX_MESSAGE_BYTES + 4, "{}", text.len());
    }

    #[test]
    fn memory_that_nobody_has_is_an_error() {
        for bytes in [u64::MAX, 1 << 62] {
            assert_eq!(ensure_memory(bytes).unwrap_err().kind(), ErrorKind::Memory);
            assert_eq!(zeroed(bytes).unwrap_err().kind(), ErrorKind::Memory);
        }
        ensure_memory(1 << 20).unwrap();
        assert_eq!(zeroed(5).unwrap(), [0; 5]);
    }
}
