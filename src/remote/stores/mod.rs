//! The stores: how objects are opened, read, listed and written, and how their stores are asked.
//!
//! An `Address` is what is special about a store: where an object lies, and what signs a request. An `Exchange` makes a
//! request as often as is reasonable; `object` reads an object by exchanges.

mod address;
mod agents;
mod cache;
mod client;
mod credentials;
mod exchange;
mod message;
mod object;
mod range;
mod settings;
mod stored;

use std::{path::Path, sync::Arc};

use self::{
    address::{Address, Hub, S3, Web},
    cache::{Cache, cached},
    client::Client,
    stored::Stored,
};
pub use self::{agents::Patience, settings::Settings};
use super::{Entry, Object, Opening, SCHEMES, Stores, Upload, shown};
use crate::error::{At as _, Error, ErrorKind, Result};

/// All stores that this build knows.
#[derive(Debug, Default)]
pub struct AllStores {
    client: Arc<Client>,
    /// Those of the process, as they are at each opening, unless there are others.
    settings: Option<Settings>,
}

impl AllStores {
    /// Stores that are asked with this patience, and configured by these settings alone.
    #[must_use]
    pub fn new(patience: Patience, settings: Settings) -> Self {
        Self { client: Arc::new(Client::new(patience)), settings: Some(settings) }
    }

    fn settings(&self) -> Settings {
        self.settings.clone().unwrap_or_else(Settings::now)
    }

    fn open_at(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>> {
        let settings = self.settings();
        let address: Arc<dyn Address> = match scheme(url)? {
            "s3" => Arc::new(S3::new(url, settings, Arc::clone(&self.client))?),
            "http" | "https" => Arc::new(Web::new(url)?),
            "hf" => return self.open_on_hub(url, &settings, opening),
            other => {
                let what = format!("{other}:// cannot be opened by this build");
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
        };
        let (object, version) = object::open(&self.client, &address, Path::new(&shown(url)), opening)?;
        self.kept(object, &*address, version.as_deref(), opening)
    }

    /// `object` of `version` with a cache before it, if one is asked for.
    fn kept(
        &self,
        object: Arc<dyn Object>,
        address: &dyn Address,
        version: Option<&str>,
        opening: &Opening,
    ) -> Result<Arc<dyn Object>> {
        Ok(match (Cache::of(opening, &self.client.process().budget)?, version) {
            (Some(cache), Some(version)) => cached(object, &address.place()?.to_string(), version, &cache),
            _ => object,
        })
    }

    /// Opens a file of the Hub, or its copy in the cache of `huggingface_hub`.
    fn open_on_hub(&self, url: &str, settings: &Settings, opening: &Opening) -> Result<Arc<dyn Object>> {
        let (hub, shown) = (Arc::new(Hub::new(url, settings)?), shown(url));
        let is_offline =
            settings.first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(settings::is_yes);
        if let Some(path) = hub.cached(settings, is_offline) {
            return Ok(Arc::new(Stored::open(&path, Path::new(&shown))?));
        }
        if is_offline {
            let what = "is not in the cache of huggingface_hub, and HF_HUB_OFFLINE is set: unset it, or download the file";
            return Err(Error::not_found(what));
        }
        let address: Arc<dyn Address> = hub.clone();
        let opened = object::open(&self.client, &address, Path::new(&shown), opening);
        // The Hub has said by now which commit it is; or it is out of reach.
        let is_unreachable = opened.as_ref().is_err_and(|error| error.errno().is_none());
        if let Some(path) = hub.cached(settings, is_unreachable) {
            return Ok(Arc::new(Stored::open(&path, Path::new(&shown))?));
        }
        let (object, version) = opened?;
        self.kept(object, &*address, version.as_deref(), opening)
    }
}

impl Stores for AllStores {
    fn open(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>> {
        self.open_at(url, opening).at(Path::new(&shown(url)))
    }

    fn list(&self, url: &str) -> Result<Vec<Entry>> {
        Err(refusal(url, "has no listings: name a file"))
    }

    fn remove(&self, url: &str) -> Result<()> {
        Err(refusal(url, "is only read: nothing is removed from it"))
    }

    fn create(&self, url: &str, _: u64) -> Result<Box<dyn Upload>> {
        Err(refusal(url, "is only read: nothing is written to it"))
    }
}

/// What the kind of store that `url` is of does not do.
fn refusal(url: &str, what: &str) -> Error {
    let error = match scheme(url) {
        Ok(scheme) => Error::new(ErrorKind::Unsupported, format!("{scheme}:// {what}")),
        Err(error) => error,
    };
    error.at(Path::new(&shown(url)))
}

/// The scheme of `url`.
///
/// # Errors
/// It is none of [`SCHEMES`].
fn scheme(url: &str) -> Result<&str> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    SCHEMES.into_iter().find(|known| known.eq_ignore_ascii_case(scheme)).ok_or_else(|| unsupported(scheme))
}

fn unsupported(scheme: &str) -> Error {
    let known = SCHEMES.map(|scheme| format!("{scheme}://")).join(", ");
    Error::argument(format!("{scheme}:// is no store that FlashPack knows: it opens {known}"))
}
