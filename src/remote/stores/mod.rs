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
mod list;
mod message;
mod object;
mod profile;
mod proxy;
mod range;
mod settings;
mod stored;
mod upload;
mod watched;

use std::{path::Path, sync::Arc};

use http::Method;
use rustix::io::Errno;

use self::{
    address::{Address, Azure, Google, Hub, Resource, S3, Web, azure_parts, bucket_and_key},
    cache::{Cache, cached},
    client::Client,
    exchange::{Exchange, Meter},
    message::Ask,
    stored::Stored,
};
pub use self::{agents::Patience, settings::Settings};
use super::{Entry, Object, Opening, SCHEMES, Stores, Upload, shown};
use crate::{
    error::{At as _, Error, ErrorKind, Result},
    progress::Progress,
};

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

    /// That of the object, or of another `resource` of its bucket.
    fn address(&self, url: &str, resource: Resource) -> Result<Arc<dyn Address>> {
        let (settings, client) = (self.settings(), Arc::clone(&self.client));
        Ok(match scheme(url)? {
            "s3" => Arc::new(S3::new(url, resource, settings, client)?),
            "gs" => Arc::new(Google::new(url, resource, settings, client)?),
            "az" => Arc::new(Azure::new(url, resource, &settings, client)?),
            "hf" if resource == Resource::List => Arc::new(Hub::folder(url, &settings)?),
            "http" | "https" if resource == Resource::Bytes => Arc::new(Web::new(url)?),
            other => return Err(refusal(other, resource)),
        })
    }

    fn open_at(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>> {
        if scheme(url)? == "hf" {
            return self.open_on_hub(url, &self.settings(), opening);
        }
        let address = self.address(url, Resource::Bytes)?;
        let (object, version) = object::open(&self.client, &address, Path::new(&shown(url)), opening)?;
        self.kept(object, &*address, version.as_deref(), opening)
    }

    fn list_at(&self, url: &str, deep: bool) -> Result<Vec<Entry>> {
        let address = self.address(url, Resource::List)?;
        let key = bucket_and_key(url).map_or("", |(_, key)| key);
        let (kind, folder) = match scheme(url)? {
            "s3" => (list::S3, key.to_owned()),
            "gs" => (list::GOOGLE, key.to_owned()),
            "az" => (list::AZURE, azure_parts(url).map_or("", |(.., key)| key).to_owned()),
            _ => (list::HUB, Hub::path(url)?),
        };
        list::list(&self.client, &*address, &kind, &folder, deep)
    }

    fn pinned_at(&self, url: &str) -> Result<String> {
        let settings = self.settings();
        if scheme(url)? != "hf" || is_offline(&settings) {
            return Ok(url.to_owned());
        }
        let Some(hub) = Hub::revision(url, &settings)? else { return Ok(url.to_owned()) };
        match Exchange::new(&self.client, &hub, &Meter::default()).text(&Ask::new(Method::GET)) {
            // Out of reach, or a mirror that has only files. Opening them says what else is wrong.
            Err(error) if error.errno().is_none_or(|errno| errno == Errno::NOENT.raw_os_error()) => {
                Ok(url.to_owned())
            }
            answer => hub.pinned_by(&answer?.1),
        }
    }

    fn remove_at(&self, url: &str) -> Result<()> {
        let address = self.address(url, Resource::Object)?;
        let meter = Meter::default();
        match Exchange::new(&self.client, &*address, &meter).answer(&Ask::new(Method::DELETE)) {
            Err(error) if error.errno() != Some(Errno::NOENT.raw_os_error()) => Err(error),
            _ => Ok(()),
        }
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
        let is_offline = is_offline(settings);
        if let Some(path) = hub.cached(settings, is_offline) {
            return Ok(Arc::new(Stored::open(&path, Path::new(&shown), hub.pinned())?));
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
            return Ok(Arc::new(Stored::open(&path, Path::new(&shown), hub.pinned())?));
        }
        let (object, version) = opened?;
        self.kept(object, &*address, version.as_deref(), opening)
    }
}

impl Stores for AllStores {
    fn open(&self, url: &str, opening: &Opening) -> Result<Arc<dyn Object>> {
        self.open_at(url, opening).at(Path::new(&shown(url)))
    }

    fn list(&self, url: &str, deep: bool) -> Result<Vec<Entry>> {
        self.list_at(url, deep).at(Path::new(&shown(url)))
    }

    fn pinned(&self, url: &str) -> Result<String> {
        self.pinned_at(url).at(Path::new(&shown(url)))
    }

    fn remove(&self, url: &str) -> Result<()> {
        // What is cancelled removes what it has made.
        Progress::SILENT.watch(|| self.remove_at(url)).at(Path::new(&shown(url)))
    }

    fn create(&self, url: &str, expected_bytes: u64) -> Result<Box<dyn Upload>> {
        let address = |resource| self.address(url, resource);
        let create = |scheme| upload::create(&self.client, scheme, address, expected_bytes, &shown(url));
        scheme(url).and_then(create).at(Path::new(&shown(url)))
    }
}

/// Whether the Hub must not be asked.
fn is_offline(settings: &Settings) -> bool {
    settings.first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(settings::is_yes)
}

/// What the stores of `scheme` do not do.
fn refusal(scheme: &str, resource: Resource) -> Error {
    let what = match resource {
        Resource::List => "has no lists: name a file",
        _ if scheme == "hf" => "is only read: save to a folder, and upload that with `hf upload`",
        _ => "is only read: save to s3://, gs:// or az://, or to a file",
    };
    Error::new(ErrorKind::Unsupported, format!("{scheme}:// {what}"))
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
