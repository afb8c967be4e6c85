//! URLs that lead to other URLs.

use std::{fmt, sync::RwLock};

use http::{HeaderValue, Request, Uri, header::AUTHORIZATION};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{
    error::{Error, Result},
    remote::stores::message::{Ask, Refusal},
    sync::Unpoisoned as _,
};

/// What URLs that people write may hold, though URLs may not.
const STRAY: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}').add(b'|').add(b'^');

/// A URL, and where its redirects have led: requests go there until access is refused, then to the first again.
pub(super) struct Links {
    places: RwLock<Places>,
    /// Sent to the first URL's host only.
    authorization: Option<HeaderValue>,
}

struct Places {
    first: Uri,
    current: Uri,
}

impl Links {
    pub(super) fn new(first: Uri, authorization: Option<HeaderValue>) -> Self {
        Self { places: RwLock::new(Places { current: first.clone(), first }), authorization }
    }

    pub(super) fn request(&self, ask: &Ask<'_>) -> Request<()> {
        let places = self.places.read().unpoisoned();
        let mut request = ask.at(with_query(&places.current, &ask.query));
        if let Some(secret) =
            self.authorization.as_ref().filter(|_| is_same_host(&places.first, &places.current))
        {
            request.headers_mut().insert(AUTHORIZATION, secret.clone());
        }
        request
    }

    /// Follows a redirect, and begins again at the first URL where the one it led to refuses access.
    pub(super) fn learn(&self, refusal: &Refusal) -> Result<bool> {
        let mut places = self.places.write().unpoisoned();
        // Another thread has learned meanwhile.
        let is_outdated = refusal.uri != with_query(&places.current, &refusal.query);
        if is_outdated {
            return Ok(true);
        }
        if refusal.status.is_redirection() {
            let Some(location) = refusal.header("location") else { return Ok(false) };
            places.current = joined(&refusal.uri, location)?;
            return Ok(true);
        }
        let may_have_expired = matches!(refusal.status.as_u16(), 400 | 401 | 403 | 410);
        let is_redirected = places.current != places.first;
        if may_have_expired && is_redirected {
            places.current = places.first.clone();
        }
        Ok(may_have_expired && is_redirected)
    }

    /// The URL that requests begin at.
    pub(super) fn first(&self) -> Uri {
        self.places.read().unpoisoned().first.clone()
    }

    /// From now on begins at `first`, at once unless redirects have led to another host.
    pub(super) fn begin_at(&self, first: Uri) {
        let mut places = self.places.write().unpoisoned();
        if is_same_host(&places.first, &places.current) {
            places.current = first.clone();
        }
        places.first = first;
    }

    /// Whether `uri` is of the host that is told secrets.
    pub(super) fn is_first_host(&self, uri: &Uri) -> bool {
        is_same_host(&self.first(), uri)
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

/// `uri` with `query` in the place of its own, if there is one.
fn with_query(uri: &Uri, query: &str) -> Uri {
    let path = uri.path();
    let parts = || {
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(format!("{path}?{query}").parse().ok()?);
        Uri::from_parts(parts).ok()
    };
    Some(query).filter(|query| !query.is_empty()).and_then(|_| parts()).unwrap_or_else(|| uri.clone())
}

fn is_same_host(one: &Uri, other: &Uri) -> bool {
    (one.scheme(), one.host(), one.port_u16()) == (other.scheme(), other.host(), other.port_u16())
}

/// `text` as the URL of a server.
pub(super) fn parsed(text: &str) -> Result<Uri> {
    let text = text.split('#').next().unwrap_or_default();
    let uri: Uri =
        utf8_percent_encode(text, STRAY).to_string().parse().map_err(|_| Error::argument("is no URL"))?;
    // What is no number of a port is a part of a password with a slash.
    let authority = uri.authority().map_or("", |it| it.as_str()).rsplit('@').next();
    let rest = authority.and_then(|it| it.strip_prefix(uri.host()?));
    let has_port = uri.port().is_some() || matches!(rest, Some("" | ":"));
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() && has_port => Ok(uri),
        _ => Err(Error::argument("is no URL of a web server")),
    }
}

/// The URL that `location` is for who reads it at `base`.
fn joined(base: &Uri, location: &str) -> Result<Uri> {
    let (scheme, authority) =
        (base.scheme_str().unwrap_or("https"), base.authority().map_or("", |it| it.as_str()));
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    match location {
        whole if whole.split(['/', '?']).next().is_some_and(|part| part.ends_with(':')) => parsed(whole),
        rest if rest.starts_with("//") => parsed(&format!("{scheme}:{rest}")),
        path if path.starts_with('/') => parsed(&format!("{scheme}://{authority}{path}")),
        query if query.starts_with('?') => parsed(&format!("{scheme}://{authority}{}{query}", base.path())),
        name => parsed(&format!("{scheme}://{authority}{folder}/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_seen_from_where_they_stand() {
        let base: Uri = "https://host:8/a/b?c=1".parse().unwrap();
        for (location, whole) in [
            ("http://other/x", "http://other/x"),
            ("//other/x", "https://other/x"),
            ("/x?y=1", "https://host:8/x?y=1"),
            ("?y=1", "https://host:8/a/b?y=1"),
            ("x y", "https://host:8/a/x%20y"),
        ] {
            assert_eq!(joined(&base, location).unwrap().to_string(), whole);
        }
        assert!(joined(&base, "file:///etc/passwd").is_err());
        for (url, is_one) in [
            ("http://[::1]:8/a", true),
            ("http://a:/b", true),
            ("http://a:99999/b", false),
            ("http://a:b/c", false),
        ] {
            assert_eq!(parsed(url).is_ok(), is_one, "{url}");
        }
    }

    #[test]
    fn secrets_go_to_the_first_host_only() {
        let links =
            Links::new(parsed("https://host/a").unwrap(), Some(HeaderValue::from_static("Bearer token")));
        let sends = || links.request(&Ask::range("bytes=0-1")).headers().contains_key(AUTHORIZATION);
        assert!(sends());
        for (current, expected) in
            [("https://host/b", true), ("http://host/b", false), ("https://other/a", false)]
        {
            links.places.write().unwrap().current = parsed(current).unwrap();
            assert_eq!(sends(), expected, "{current}");
        }
        assert!(!format!("{links:?}").contains("token"));
    }
}
