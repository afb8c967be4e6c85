//! `hf://[models|datasets|spaces/]org/repo[@revision]/path`: files of repositories on the Hugging Face Hub.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Mutex, OnceLock},
};

use http::{HeaderMap, HeaderValue, Request, Uri};
use serde::Deserialize;

use super::{
    Address, hub_cache,
    hub_file::File,
    links::{Links, parsed},
};
use crate::{
    error::{Error, ErrorKind, Result},
    remote::{
        shown,
        stores::{
            message::{Ask, Refusal},
            range::Pin,
            settings::Settings,
        },
    },
    sync::Unpoisoned as _,
};

/// Larger files are not given out by HTTP: the Hub has them in parts of a protocol of its own.
const MOST_BYTES: u64 = 400_000_000_000;

/// Makes the URL of a folder that of a file in it, of any name.
const BELOW: &str = "/-";

/// A file of the Hub, and what it has said of it.
pub(in crate::remote::stores) struct Hub {
    file: File,
    endpoint: String,
    links: Links,
    has_token: bool,
    commit: OnceLock<String>,
    bytes: Mutex<Option<u64>>,
}

impl Hub {
    /// # Errors
    /// [`ErrorKind::Argument`]: `url` names no file of a repository, or `HF_ENDPOINT` no server.
    pub(in crate::remote::stores) fn new(url: &str, settings: &Settings) -> Result<Self> {
        let file = File::parse(url)?;
        let endpoint =
            settings.get("HF_ENDPOINT").unwrap_or("https://huggingface.co").trim_end_matches('/').to_owned();
        let token = token(settings);
        let first = parsed(&format!("{endpoint}/{}", file.resolve(&file.revision)))
            .map_err(|_| Error::argument("cannot be asked for: HF_ENDPOINT is not http(s)://host"))?;
        let links = Links::new(first, token.as_deref().and_then(bearer));
        let has_token = token.is_some();
        Ok(Self { file, endpoint, links, has_token, commit: OnceLock::new(), bytes: Mutex::new(None) })
    }

    /// The list of the folder at `url`, or of the repository.
    ///
    /// # Errors
    /// As [`Hub::new`].
    pub(in crate::remote::stores) fn folder(url: &str, settings: &Settings) -> Result<Self> {
        Self::new(&below(url), settings)?.asked_at(File::tree, settings)
    }

    /// What says which commit the revision of `url` is; none if that is one itself.
    ///
    /// # Errors
    /// As [`Hub::new`].
    pub(in crate::remote::stores) fn revision(url: &str, settings: &Settings) -> Result<Option<Self>> {
        let hub = Self::new(&below(url), settings)?;
        let is_commit = hub_cache::is_commit(&hub.file.revision);
        (!is_commit).then(|| hub.asked_at(File::info, settings)).transpose()
    }

    fn asked_at(self, place: impl Fn(&File) -> String, settings: &Settings) -> Result<Self> {
        let first = parsed(&format!("{}/{}", self.endpoint, place(&self.file)))?;
        Ok(Self { links: Links::new(first, token(settings).as_deref().and_then(bearer)), ..self })
    }

    /// The URL that [`Hub::revision`] was made of, with the commit that the Hub's `answer` names.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]: it names none.
    pub(in crate::remote::stores) fn pinned_by(&self, answer: &str) -> Result<String> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
        }
        let info = serde_json::from_str(answer).ok().filter(|info: &Info| hub_cache::is_commit(&info.sha));
        let info = info.ok_or_else(|| {
            Error::new(
                ErrorKind::Io,
                "its server does not say which commit the revision is: name one in the URL",
            )
        })?;
        let url = self.file.at(&info.sha);
        Ok(url.strip_suffix(BELOW).unwrap_or(&url).to_owned())
    }

    /// The path of the folder at `url` in its repository.
    ///
    /// # Errors
    /// As [`Hub::new`].
    pub(in crate::remote::stores) fn path(url: &str) -> Result<String> {
        Ok(File::parse(&below(url))?.folder().to_owned())
    }

    /// The file in the cache of `huggingface_hub`, of the commit that the Hub has named. Without its answer that of a
    /// revision which is one, or `is_offline` the commit that the revision was when it was downloaded.
    pub(in crate::remote::stores) fn cached(&self, settings: &Settings, is_offline: bool) -> Option<PathBuf> {
        let commit = self.commit.get().map(String::as_str);
        hub_cache::find(&hub_cache::folder(settings)?, &self.file, commit, is_offline)
    }

    /// Remembers what headers of the Hub's own answers say.
    fn note(&self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if let Some(bytes) = text("x-linked-size").and_then(|text| text.parse().ok()) {
            *self.bytes.lock().unpoisoned() = Some(bytes);
        }
        let Some(commit) = text("x-repo-commit").filter(|commit| hub_cache::is_commit(commit)) else {
            return;
        };
        if self.commit.set(commit.to_owned()).is_ok()
            && let Ok(first) = parsed(&format!("{}/{}", self.endpoint, self.file.resolve(commit)))
        {
            self.links.begin_at(first);
        }
    }
}

/// The URL of a file in the folder at `url`.
fn below(url: &str) -> String {
    format!("{}{BELOW}", url.trim_end_matches('/'))
}

impl Address for Hub {
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>> {
        Ok(self.links.request(ask))
    }

    fn learn(&self, refusal: &Refusal) -> Result<bool> {
        let learned = self.links.learn(refusal)?;
        if self.links.is_first_host(&refusal.uri) {
            self.note(&refusal.headers);
        }
        match *self.bytes.lock().unpoisoned() {
            Some(bytes) if bytes > MOST_BYTES => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "has {}, and the Hub gives out files of more than {} by its Xet protocol only: download it with \
                     `hf download`, and load that",
                    crate::text::size(bytes),
                    crate::text::size(MOST_BYTES)
                ),
            )),
            _ => Ok(learned),
        }
    }

    fn pin(&self, headers: &HeaderMap) -> Pin {
        self.note(headers);
        self.commit.get().map_or_else(|| Pin::of(headers), |commit| Pin::fixed(commit))
    }

    fn place(&self) -> Result<Uri> {
        Ok(self.links.first())
    }

    fn pinned(&self) -> Option<String> {
        self.commit.get().map(|commit| self.file.at(commit))
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        let page = format!("{}/{}", shown(&self.endpoint), self.file.page());
        let token = if self.has_token {
            "with a token (HF_TOKEN) that may read it"
        } else {
            "with HF_TOKEN, or after `hf auth login`"
        };
        let advice = match (refusal.header("x-error-code"), refusal.status.as_u16()) {
            (Some("GatedRepo"), _) => format!("accept the terms of {page}, and load it {token}"),
            (Some("RepoNotFound"), _) => {
                format!("check that {page} exists; a private repository is loaded {token}")
            }
            (Some("RevisionNotFound"), _) => format!("{page} has no revision {:?}", self.file.revision),
            (Some("EntryNotFound"), _) => {
                format!("{page} has no such file in revision {:?}", self.file.revision)
            }
            (_, 401 | 403) => format!("load it {token}"),
            _ => return None,
        };
        Some(advice)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("file", &self.file).finish_non_exhaustive()
    }
}

/// That of the environment, or the one that `hf auth login` has stored.
fn token(settings: &Settings) -> Option<String> {
    if let Some(token) = settings.first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
        return Some(token.to_owned());
    }
    let stored = settings.get("HF_TOKEN_PATH").map(|path| settings.expanded(path));
    let stored = stored.or_else(|| Some(hub_cache::home(settings)?.join("token")))?;
    let token = fs::read_to_string(stored).ok()?.trim().to_owned();
    (!token.is_empty() && !settings.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")).then_some(token)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_from_the_environment_or_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "stored\n").unwrap();
        let home = folder.path().to_str().unwrap();
        let found = |pairs: &[(&str, &str)]| token(&pairs.iter().copied().collect());
        assert_eq!(found(&[("HF_TOKEN", "set"), ("HF_HOME", home)]).as_deref(), Some("set"));
        assert_eq!(found(&[("HF_HOME", home)]).as_deref(), Some("stored"));
        assert_eq!(found(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(found(&[("HF_TOKEN_PATH", &format!("{home}/token"))]).as_deref(), Some("stored"));
    }
}
