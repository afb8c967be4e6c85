//! Google's resumable uploads: one part after the other.

use std::sync::{Arc, OnceLock};

use http::{
    HeaderMap, Method, StatusCode,
    header::{CONTENT_RANGE, LOCATION, RANGE},
};

use super::Parts;
use crate::{
    error::{Error, ErrorKind, Result},
    remote::stores::{
        address::{Address, Web},
        client::Client,
        exchange::{Exchange, Meter},
        message::Ask,
    },
};

/// What all parts but the last are multiples of. That is not empty: it says how long the object is.
const UNIT_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Google {
    client: Arc<Client>,
    address: Arc<dyn Address>,
    /// Where the parts go, once it has begun.
    session: OnceLock<Web>,
    meter: Meter,
}

impl Google {
    pub(super) fn new(client: Arc<Client>, address: Arc<dyn Address>) -> Self {
        Self { client, address, session: OnceLock::new(), meter: Meter::default() }
    }

    fn exchange(&self) -> Exchange<'_> {
        Exchange::new(&self.client, &*self.address, &self.meter)
    }

    fn session(&self) -> Result<Exchange<'_>> {
        let session = self.session.get().ok_or_else(|| failed("begun no upload"))?;
        Ok(Exchange::new(&self.client, session, &self.meter))
    }

    /// Sends `bytes` from `offset` of an object of so many, if their number is known.
    fn put(&self, offset: u64, bytes: &[u8], total: Option<u64>) -> Result<()> {
        let (end, total) =
            (offset + bytes.len() as u64, total.map_or("*".to_owned(), |total| total.to_string()));
        let (mut start, mut exchange) = (offset, self.session()?);
        loop {
            let rest = usize::try_from(start - offset).ok().and_then(|skipped| bytes.get(skipped..));
            let rest = rest.ok_or_else(|| failed("kept more than was sent"))?;
            let range = format!("bytes {start}-{}/{total}", end - 1);
            let also = Some(StatusCode::PERMANENT_REDIRECT); // which means here that more is to come
            let ask = Ask { also, ..Ask::new(Method::PUT).with(CONTENT_RANGE, &range).sending(rest) };
            let (status, headers) = exchange.status(&ask)?;
            let kept = if status.is_success() { end } else { kept(&headers) };
            if kept == end && (total == "*" || status.is_success()) {
                return Ok(());
            }
            if kept <= start {
                return Err(failed("kept nothing of what was sent"));
            }
            start = kept;
        }
    }
}

/// The bytes that the store has by now.
fn kept(headers: &HeaderMap) -> u64 {
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    range
        .rsplit_once('-')
        .and_then(|(_, last)| last.trim().parse::<u64>().ok())
        .map_or(0, |last| last.saturating_add(1))
}

fn failed(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("its server has {what}"))
}

impl Parts for Google {
    fn whole(&self, bytes: &[u8]) -> Result<()> {
        self.exchange().text(&Ask::query(Method::POST, "uploadType=media").sending(bytes)).map(drop)
    }

    fn begin(&self) -> Result<()> {
        let (headers, _) = self.exchange().text(&Ask::query(Method::POST, "uploadType=resumable"))?;
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let session = Web::new(location.ok_or_else(|| failed("not said where parts go"))?)?;
        self.session.get_or_init(|| session);
        Ok(())
    }

    fn send(&self, _: usize, offset: u64, bytes: &[u8]) -> Result<String> {
        self.put(offset, bytes, None).map(|()| String::new())
    }

    fn finish(&self, _: Vec<String>, offset: u64, last: &[u8]) -> Result<()> {
        self.put(offset, last, Some(offset + last.len() as u64))
    }

    fn abandon(&self) {
        if let Ok(mut session) = self.session() {
            drop(session.answer(&Ask::new(Method::DELETE))); // a week later it goes by itself
        }
    }

    fn is_parallel(&self) -> bool {
        false
    }

    fn held_back(&self, last: usize) -> usize {
        last - last.saturating_sub(1) / UNIT_BYTES * UNIT_BYTES
    }
}
