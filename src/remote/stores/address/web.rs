//! `http://` and `https://`: any web server.

use http::{HeaderValue, Request, Uri};
use percent_encoding::percent_decode_str;
use reqsign_core::hash::base64_encode;

use super::{Address, links};
use crate::{
    error::Result,
    remote::stores::message::{Ask, Refusal},
};

/// An object of a web server; presigned URLs keep their query.
#[derive(Debug)]
pub(in crate::remote::stores) struct Web {
    links: links::Links,
}

impl Web {
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): `url` names no server.
    pub(in crate::remote::stores) fn new(url: &str) -> Result<Self> {
        let (bare, user) = without_user(url);
        Ok(Self { links: links::Links::new(links::parsed(&bare)?, user.as_deref().and_then(basic)) })
    }
}

impl Address for Web {
    fn signed(&self, ask: &Ask<'_>) -> Result<Request<()>> {
        Ok(self.links.request(ask))
    }

    fn learn(&self, refusal: &Refusal) -> Result<bool> {
        self.links.learn(refusal)
    }

    fn place(&self) -> Result<Uri> {
        Ok(self.links.first())
    }

    fn advice(&self, refusal: &Refusal) -> Option<String> {
        matches!(refusal.status.as_u16(), 401 | 403).then(|| {
            "give user and password in the URL, or one that is signed and has not expired".to_owned()
        })
    }
}

/// `url` without `user:password@`, and those.
fn without_user(url: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) => (format!("{scheme}://{host}{path}"), Some(user.to_owned())),
        None => (url.to_owned(), None),
    }
}

/// The header that tells a server of user and password.
fn basic(user: &str) -> Option<HeaderValue> {
    let plain: Vec<u8> = percent_decode_str(user).collect();
    let mut header = HeaderValue::from_str(&format!("Basic {}", base64_encode(&plain))).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_become_a_header() {
        let (bare, user) = without_user("https://me:p%40ss@host:8/a@b?c=1");
        assert_eq!((&*bare, user.as_deref()), ("https://host:8/a@b?c=1", Some("me:p%40ss")));
        assert_eq!(basic("me:p%40ss").unwrap(), "Basic bWU6cEBzcw==");
        assert_eq!(without_user("https://host/a@b"), ("https://host/a@b".to_owned(), None));
        for wrong in ["https://", "https:///path", "http://?x"] {
            assert!(Web::new(wrong).is_err(), "{wrong}");
        }
    }
}
