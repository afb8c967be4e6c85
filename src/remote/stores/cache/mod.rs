//! A copy on this machine of what is read of objects, so that the next load comes from the disk.
//!
//! [`cached`] wraps an object whose version is known. Its blocks that are there are read from the entry; what is not is
//! fetched, straight to where it is wanted, and written behind. Nothing that fails here fails a load.

mod behind;
mod blocks;
mod entry;
mod folder;
mod held;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub(super) use self::held::Budget;
use self::{
    behind::Behind,
    blocks::{BLOCK_BYTES, part},
    entry::Entry,
    folder::Folder,
};
use crate::{
    environment,
    error::Result,
    remote::{self, Object, Opening, Traffic},
};

/// Where entries are, and how much they may take.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// By default half of what would be free without them.
    limit: Option<u64>,
    budget: Budget,
}

impl Cache {
    /// As `opening` or the environment asks, if either does; `budget` is that of the process.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument), naming a variable whose value is malformed.
    pub(super) fn of(opening: &Opening, budget: &Budget) -> Result<Option<Self>> {
        let (folder, limit) = environment::cache()?;
        Ok(opening.cache.clone().or(folder).map(|folder| Self { folder, limit, budget: budget.clone() }))
    }
}

/// `object` with a cache before it; `object` itself if there can be none, or if it is small: what tells its version has
/// brought about as many bytes.
///
/// `address` is the URL of the object at its endpoint. `version` is one that different bytes never share, such as a strong
/// ETag.
pub(super) fn cached(
    object: Arc<dyn Object>,
    address: &str,
    version: &str,
    cache: &Cache,
) -> Arc<dyn Object> {
    if object.len() <= BLOCK_BYTES {
        return object;
    }
    match Cached::open(&object, &unsigned(address), version, cache) {
        Ok(cached) => Arc::new(cached),
        Err(_) => object,
    }
}

/// `url` without what only grants access to it, and differs each time: user, password, fragment, and signature. The rest
/// of a query may choose among objects.
fn unsigned(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let name = |field: &str| field.split('=').next().unwrap_or_default().to_ascii_lowercase();
    let is_signed = query.split('&').any(|field| SIGNATURES.contains(&&*name(field)));
    let grants = |name: &str| {
        is_signed && (name.starts_with("x-amz-") || name.starts_with("x-goog-") || GRANTS.contains(&name))
    };
    let rest: Vec<&str> =
        query.split('&').filter(|field| !field.is_empty() && !grants(&name(field))).collect();
    format!("{}?{}", remote::shown(path), rest.join("&"))
}

/// Fields with signatures: S3's two versions and CloudFront's, Google Cloud Storage's, Azure's.
const SIGNATURES: [&str; 4] = ["x-amz-signature", "signature", "x-goog-signature", "sig"];

/// Fields that come with them, but for those with a prefix.
#[rustfmt::skip]
const GRANTS: [&str; 22] = [
    "awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy", "se", "sig", "signature", "sip", "ske", "skoid",
    "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt", "ss", "st", "sv",
];

#[derive(Debug)]
struct Cached {
    object: Arc<dyn Object>,
    entry: Arc<Entry>,
    behind: Behind,
    /// What has proved to be damaged could not be forgotten: nothing of the entry is used any more.
    is_damaged: AtomicBool,
    /// Bytes that the entry had.
    served: AtomicU64,
}

impl Cached {
    fn open(object: &Arc<dyn Object>, address: &str, version: &str, cache: &Cache) -> io::Result<Self> {
        let folder = Folder::open(&cache.folder, cache.limit)?;
        let entry = Arc::new(Entry::open(&folder, address, version, object.len())?);
        let behind = Behind::new(Arc::clone(&entry), folder, cache.budget.clone());
        let (is_damaged, served) = Default::default();
        Ok(Self { object: Arc::clone(object), entry, behind, is_damaged, served })
    }
}

impl Object for Cached {
    fn len(&self) -> u64 {
        self.object.len()
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<()> {
        let mut bytes: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let wanted = offset..offset.saturating_add(bytes);
        if wanted.end > self.len() || self.is_damaged.load(Ordering::Relaxed) {
            return self.object.read_exact_at(buffers, offset);
        }
        for missing in self.entry.read(buffers, &wanted) {
            let mut memory = part(buffers, &(missing.start - offset..missing.end - offset));
            self.object.read_exact_at(&mut memory, missing.start)?;
            self.behind.keep(&mut memory, &missing);
            bytes -= missing.end - missing.start;
        }
        self.served.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn distrust(&self, offset: u64, bytes: u64) {
        let blocks = self.entry.blocks.touched(&(offset..offset.saturating_add(bytes)));
        if self.behind.forget(&blocks).is_err() {
            self.is_damaged.store(true, Ordering::Relaxed);
        }
        self.object.distrust(offset, bytes);
    }

    fn traffic(&self) -> Traffic {
        let traffic = self.object.traffic();
        Traffic { cached_bytes: traffic.cached_bytes + self.served.load(Ordering::Relaxed), ..traffic }
    }

    fn pinned(&self) -> Option<String> {
        self.object.pinned()
    }

    fn note(&self) -> Option<String> {
        let stopped = self.behind.stopped();
        self.object.note().or_else(|| Some(format!("not all of it is kept in the cache: {}", stopped?)))
    }
}
