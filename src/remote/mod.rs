//! Objects that lie elsewhere than in files: what the core asks of the stores that a URL names.
//!
//! The stores themselves are `stores`, compiled by the feature `remote`. The libraries that Python loads are built without
//! it, and open `libflashpack_remote.so` beside themselves when the first URL is met, so that local loads pay nothing.

#[cfg(any(not(feature = "remote"), test))]
mod library;
#[cfg(feature = "remote")]
pub mod stores;
pub(crate) mod table;

use std::{
    borrow::Cow,
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Schemes of URLs that name objects.
pub const SCHEMES: [&str; 6] = ["s3", "gs", "az", "http", "https", "hf"];

/// The stores that URLs name. Every URL is given whole, as the user wrote it.
pub trait Stores: Sync {
    /// Opens the object at `url` in one version, which all later reads get or fail.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), with `ENOENT` if there is no such object and `EACCES` if the store refuses
    /// access; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a URL that names none.
    fn open(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>>;

    /// The objects in the folder at `url`, sorted by name; if `deep` also those in folders below it, by their paths there.
    ///
    /// # Errors
    /// As [`Stores::open`]; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the store has no listings.
    fn list(&self, url: &str, deep: bool) -> Result<Vec<Entry>>;

    /// The URL of what the file or folder at `url` is now, whatever comes later: of `hf://` that with the commit. `url` itself
    /// if its store has no such URLs, or cannot be asked.
    ///
    /// # Errors
    /// As [`Stores::open`].
    fn pinned(&self, url: &str) -> Result<String>;

    /// Removes the object at `url`; that there is none is no error.
    ///
    /// # Errors
    /// As [`Stores::create`].
    fn remove(&self, url: &str) -> Result<()>;

    /// Begins an object of about `expected_bytes` that will lie at `url`.
    ///
    /// # Errors
    /// As [`Stores::open`]; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if nothing can be written there.
    fn create(&self, url: &str, expected_bytes: u64) -> Result<Box<dyn Upload>>;
}

/// How an object is opened.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Opening {
    /// Where a copy of what is read is kept, and read from the next time.
    pub cache: Option<PathBuf>,
    /// Whether its beginning is what will be read first, and not its end.
    pub begins_with_header: bool,
}

/// One version of an object that is being read, by several threads at once.
pub trait Object: Debug + Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffers`, one after the other, from `offset` by one request, which is made again as often as is reasonable.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io): the store does not give the bytes, or has another version by now.
    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()>;

    /// Forgets copies of the bytes from `offset` on, which have proved to be damaged: the next read fetches them.
    fn distrust(&self, offset: u64, bytes: u64);

    /// What reading it has taken so far.
    fn traffic(&self) -> Traffic;

    /// What is unusual about the way it is read, in words.
    fn note(&self) -> Option<String> {
        None
    }

    /// The URL of this version, whatever comes later, if it has one: of `hf://` that with the commit.
    fn pinned(&self) -> Option<String> {
        None
    }
}

/// An object that is being written, and appears whole with [`Upload::finish`] or not at all. What is dropped is given up.
pub trait Upload: Debug + Send {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), perhaps of bytes that were appended before.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Sends what was appended, after which no more follows, and frees the threads and memory for that: an object may wait
    /// for others before it is finished.
    ///
    /// # Errors
    /// As [`Upload::write`].
    fn seal(&mut self) -> Result<()>;

    /// Makes it the object at its URL, in place of any other.
    ///
    /// # Errors
    /// As [`Upload::write`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// An object in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name there.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// What reads of an object have taken since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests that were sent.
    pub requests: u64,
    /// Those among them that were sent because another had failed.
    pub retries: u64,
    /// Bytes that came.
    pub fetched_bytes: u64,
    /// Bytes that a local copy had.
    pub cached_bytes: u64,
    /// Requests under way at the same time, at most.
    pub connections: u64,
    /// From a request to the first byte of its answer, the shortest seen; in nanoseconds for other languages.
    #[serde(with = "nanoseconds")]
    pub latency: Duration,
}

mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_nanos)
    }
}

impl Traffic {
    /// That of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let latencies = [self.latency, other.latency].into_iter().filter(|latency| !latency.is_zero());
        Self {
            requests: self.requests + other.requests,
            retries: self.retries + other.retries,
            fetched_bytes: self.fetched_bytes + other.fetched_bytes,
            cached_bytes: self.cached_bytes + other.cached_bytes,
            connections: self.connections.max(other.connections),
            latency: latencies.min().unwrap_or_default(),
        }
    }
}

/// The URL that `path` is, if it is one: a scheme and `://`.
#[must_use]
pub fn url(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    (scheme.starts_with(|letter: char| letter.is_ascii_alphabetic()) && scheme.chars().all(is_scheme))
        .then_some(text)
}

/// `url` as messages may show it: without user, password, query and fragment, where secrets are.
#[must_use]
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return split_query(url).0.to_owned();
    };
    let (bare, _) = split_query(rest);
    let (authority, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let name = host.split_once(':').filter(|(_, port)| !port.bytes().all(|byte| byte.is_ascii_digit()));
    match (name.filter(|_| !host.starts_with('[')), rest.rsplit_once('@')) {
        // A password that has a slash, `?` or `#`, as keys of AWS do.
        (Some(_), Some((_, host))) => shown(&format!("{scheme}://{host}")),
        (Some((name, _)), None) => format!("{scheme}://{name}{path}"),
        (None, _) => format!("{scheme}://{host}{path}"),
    }
}

/// The URL of `name` in the folder that `url` lies in; a query stays, as it may be what grants access.
#[must_use]
pub fn beside(url: &str, name: &str) -> String {
    let (path, query) = split_query(url);
    let folder = path.rfind('/').map_or(path, |slash| &path[..=slash]);
    format!("{folder}{name}{query}")
}

/// The same URL with `suffix` at the end of its path.
#[must_use]
pub fn with_suffix(url: &str, suffix: &str) -> String {
    let (path, query) = split_query(url);
    format!("{path}{suffix}{query}")
}

/// The URL of `name` in the folder that `url` names.
#[must_use]
pub fn within(url: &str, name: &str) -> String {
    let (path, query) = split_query(url);
    format!("{}/{name}{query}", path.trim_end_matches('/'))
}

/// Whether `url` can only name a folder: it ends like one, or is a whole bucket, container or repository.
#[must_use]
pub fn names_folder(url: &str) -> bool {
    let (path, _) = split_query(url);
    let Some((scheme, rest)) = path.split_once("://") else {
        return false;
    };
    let mut parts = rest.split('/').peekable();
    match scheme {
        "hf" => drop(parts.next_if(|kind| ["models", "datasets", "spaces"].contains(kind))),
        "az" => drop(parts.next_if(|host| host.contains('.'))), // no container has a dot
        _ => {}
    }
    let before_path = if scheme == "hf" { 2 } else { 1 };
    rest.ends_with('/') || parts.count() <= before_path
}

/// `path` as messages may show it: a URL without its secrets.
#[must_use]
pub fn label(path: &Path) -> Cow<'_, Path> {
    match url(path) {
        Some(url) => Cow::Owned(shown(url).into()),
        None => Cow::Borrowed(path),
    }
}

/// Refuses `path` for the reason `why` if it is a URL.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
pub(crate) fn refuse(path: &Path, why: &str) -> Result<()> {
    match url(path) {
        Some(_) => Err(Error::new(crate::ErrorKind::Unsupported, why).at(&label(path))),
        None => Ok(()),
    }
}

fn split_query(url: &str) -> (&str, &str) {
    url.split_at(url.find(['?', '#']).unwrap_or(url.len()))
}

/// The stores, of this library or of the one beside it.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): this build has none, and there is no library beside it.
#[cfg(feature = "remote")]
pub fn stores() -> Result<&'static dyn Stores> {
    static STORES: std::sync::LazyLock<stores::AllStores> =
        std::sync::LazyLock::new(stores::AllStores::default);
    Ok(&*STORES)
}

/// The stores, of this library or of the one beside it.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): this build has none, and there is no library beside it.
#[cfg(not(feature = "remote"))]
pub fn stores() -> Result<&'static dyn Stores> {
    Ok(library::Library::beside()?)
}
