//! Where objects lie: what each kind of store makes of a URL.

mod azure;
mod google;
mod hub;
mod hub_cache;
mod hub_file;
mod links;
mod s3;
mod web;

use std::fmt::Debug;

use http::{HeaderMap, Request, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub(super) use self::{
    azure::{Azure, split as azure_parts},
    google::Google,
    hub::Hub,
    s3::S3,
    web::Web,
};
use super::{
    message::{Ask, Refusal},
    range::Pin,
};
use crate::error::Result;

/// Where an object lies, and how its store is asked for it. Several threads use one at once.
pub(super) trait Address: Debug + Send + Sync {
    /// The request that `ask` is, with where it goes and what grants access.
    ///
    /// # Errors
    /// There are no credentials where there have to be some.
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>>;

    /// Learns from an answer that is no success: a redirect, or that credentials or a signed URL have expired. Whether
    /// the same `ask` may succeed now.
    ///
    /// # Errors
    /// It never will, for a reason that the address knows.
    fn learn(&self, refusal: &Refusal) -> Result<bool>;

    /// What pins the version that an answer with these headers is of.
    fn pin(&self, headers: &HeaderMap) -> Pin {
        Pin::of(headers)
    }

    /// The URL that the object has for all who may read it.
    fn place(&self) -> Result<Uri>;

    /// As [`Object::pinned`](crate::remote::Object::pinned), once the store has answered.
    fn pinned(&self) -> Option<String> {
        None
    }

    /// What a user can do about a refusal.
    fn advice(&self, refusal: &Refusal) -> Option<String>;

    /// Whether the store can be asked for the last bytes of an object whose length is unknown.
    fn has_suffix_ranges(&self) -> bool {
        true
    }
}

/// What is asked for of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::remote::stores) enum Resource {
    /// The bytes of an object.
    Bytes,
    /// An object.
    Object,
    /// All objects.
    List,
    /// A new object.
    New,
}

impl Resource {
    /// The `key` that it has, which the list alone can do without.
    fn key(self, key: &str) -> Option<&str> {
        if self == Self::List { Some("") } else { Some(key).filter(|key| !key.is_empty()) }
    }
}

/// What to do about a refusal of access to a bucket, by whether there are credentials; these are looked for in `places`.
fn advice(has_credentials: bool, places: &str) -> String {
    if has_credentials {
        "check that there is such an object, and that these credentials may use it".to_owned()
    } else {
        format!("no credentials were found: {places}")
    }
}

/// The bucket and the key of `scheme://bucket/key`; none if its first part can be no bucket.
pub(super) fn bucket_and_key(url: &str) -> Option<(&str, &str)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty() && !bucket.contains(['@', ':', '?', '#', '%', ' '])).then_some((bucket, key))
}

/// Letters that stand for themselves in the path of a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// `path` as the path of a URL.
fn encoded(path: &str) -> String {
    utf8_percent_encode(path, PLAIN).to_string()
}

/// `text` as a value in a query, or as one name in a path.
pub(super) fn encoded_whole(text: &str) -> String {
    encoded(text).replace('/', "%2F")
}
