//! S3's multipart uploads.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use http::{
    HeaderMap, Method, StatusCode,
    header::{DATE, ETAG, HeaderName, LAST_MODIFIED},
};
use reqsign_core::time::Timestamp;
use serde::Deserialize;

use super::Parts;
use crate::{
    error::{Error, ErrorKind, Result},
    remote::stores::{
        address::{Address, encoded_whole},
        client::Client,
        exchange::{Exchange, Fault, Meter},
        message::{Ask, Refusal},
        range::length,
    },
};

/// Dates in headers are whole seconds: two of them together may say so much too much.
const ROUNDING: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct S3 {
    client: Arc<Client>,
    address: Arc<dyn Address>,
    /// The store's name for the upload, once it has begun.
    id: OnceLock<String>,
    /// From before the store names the upload: what that makes is no older.
    since: Instant,
    meter: Meter,
}

impl S3 {
    pub(super) fn new(client: Arc<Client>, address: Arc<dyn Address>) -> Self {
        Self { client, address, id: OnceLock::new(), since: Instant::now(), meter: Meter::default() }
    }

    fn exchange(&self) -> Exchange<'_> {
        Exchange::new(&self.client, &*self.address, &self.meter)
    }

    /// The field of a query that names the upload.
    fn id(&self) -> String {
        format!("uploadId={}", encoded_whole(self.id.get().map_or("", String::as_str)))
    }

    /// Takes an upload of so many parts and bytes that the store no longer knows for finished, if that is what its object
    /// looks like: the answer to an earlier try was lost, but the try may have taken effect.
    ///
    /// # Errors
    /// There is no object, or another one.
    fn recognize(&self, parts: usize, bytes: u64) -> Result<()> {
        let lost = |why: &str| {
            let what = "its server did not confirm the end of the upload, and knows it no longer";
            Error::new(ErrorKind::Io, format!("{what} ({why}): save it again"))
        };
        let (_, headers) =
            self.exchange().status(&Ask::new(Method::HEAD)).map_err(|error| match error.kind() {
                ErrorKind::Cancelled => error,
                _ => lost(&error.to_string()),
            })?;
        let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let is_new = age(&headers).is_some_and(|age| age <= self.since.elapsed() + ROUNDING);
        let is_alike =
            length(&headers) == Some(bytes) && parts_of(tag).is_none_or(|counted| counted == parts);
        if is_new && is_alike { Ok(()) } else { Err(lost("the object there is not what was sent")) }
    }
}

/// How long an object has been there, by its store's own clock.
fn age(headers: &HeaderMap) -> Option<Duration> {
    let time = |name: HeaderName| {
        Some(Timestamp::parse_rfc2822(headers.get(name)?.to_str().ok()?).ok()?.as_system_time())
    };
    Some(time(DATE)?.duration_since(time(LAST_MODIFIED)?).unwrap_or_default())
}

/// The number of parts that an ETag ends with if it is `"<md5 of their md5s>-<number>"`, as not all stores make them.
fn parts_of(tag: &str) -> Option<usize> {
    let (digest, parts) = tag.trim_matches('"').rsplit_once('-')?;
    let is_digest = digest.len() == 32 && digest.bytes().all(|digit| digit.is_ascii_hexdigit());
    parts.parse().ok().filter(|_| is_digest)
}

impl Parts for S3 {
    fn whole(&self, bytes: &[u8]) -> Result<()> {
        self.exchange().text(&Ask::new(Method::PUT).sending(bytes)).map(drop)
    }

    fn begin(&self) -> Result<()> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Begun {
            upload_id: String,
        }
        let (_, text) = self.exchange().text(&Ask::query(Method::POST, "uploads="))?;
        let begun: Begun = quick_xml::de::from_str(&text).map_err(|error| {
            Error::new(ErrorKind::Io, format!("its server answered without the id of an upload ({error})"))
        })?;
        self.id.get_or_init(|| begun.upload_id);
        Ok(())
    }

    fn send(&self, number: usize, _: u64, bytes: &[u8]) -> Result<String> {
        let query = format!("partNumber={}&{}", number + 1, self.id());
        let (headers, _) = self.exchange().text(&Ask::query(Method::PUT, query).sending(bytes))?;
        let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(ToOwned::to_owned);
        tag.ok_or_else(|| Error::new(ErrorKind::Io, "its server answered without the ETag of a part"))
    }

    fn finish(&self, mut sent: Vec<String>, offset: u64, last: &[u8]) -> Result<()> {
        if !last.is_empty() {
            sent.push(self.send(sent.len(), offset, last)?);
        }
        let mut body = String::from("<CompleteMultipartUpload>");
        for (number, tag) in (1..).zip(&sent) {
            let tag = tag.replace('&', "&amp;").replace('<', "&lt;");
            let _ = write!(body, "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
        }
        body.push_str("</CompleteMultipartUpload>");
        let ask = Ask::query(Method::POST, self.id()).sending(body.as_bytes());
        let mut exchange = self.exchange();
        loop {
            let (headers, text) = match exchange.text(&ask) {
                Err(error) if error.is_not_found() && exchange.has_failed() => {
                    return self.recognize(sent.len(), offset + last.len() as u64);
                }
                answer => answer?,
            };
            if !text.contains("<Error>") {
                return Ok(());
            }
            // It begins to answer before it knows how that ends.
            let (status, uri, query) = (StatusCode::OK, self.address.place()?, self.id());
            exchange.failed(Fault::Busy(Box::new(Refusal { status, headers, uri, query, text })))?;
        }
    }

    fn abandon(&self) {
        // What cannot be removed now, a rule for the bucket's life cycle does.
        drop(self.exchange().answer(&Ask::query(Method::DELETE, self.id())));
    }
}
