//! What is asked of a store, and how it refuses.

use std::{fmt, io::Read as _};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{HeaderName, RANGE},
};
use ureq::Body;

/// Longest part of a server's message that errors repeat.
const SAID_BYTES: usize = 200;
/// Longest part of a refusal that is read.
const REFUSAL_BYTES: u64 = 16 << 10;

/// A request, before its store has addressed and signed it.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub method: Method,
    /// What stands behind `?`, encoded: of lists and uploads.
    pub query: String,
    pub headers: HeaderMap,
    pub body: &'a [u8],
    /// What is an answer, too, though it is no success.
    pub also: Option<StatusCode>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method) -> Self {
        Self { method, query: String::new(), headers: HeaderMap::new(), body: &[], also: None }
    }

    /// For what `query` says.
    pub(super) fn query(method: Method, query: impl Into<String>) -> Self {
        Self { query: query.into(), ..Self::new(method) }
    }

    /// For bytes of the object: `bytes=0-9`, `bytes=-10`.
    pub(super) fn range(range: &str) -> Self {
        Self { also: Some(StatusCode::RANGE_NOT_SATISFIABLE), ..Self::new(Method::GET).with(RANGE, range) }
    }

    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The request to `uri`, without what grants access.
    pub(super) fn at(&self, uri: Uri) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// With that body.
    pub(super) fn sending(mut self, body: &'a [u8]) -> Self {
        self.body = body;
        self
    }
}

/// An answer that is no success.
pub(super) struct Refusal {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Where the request went.
    pub uri: Uri,
    /// The query of what was asked, which an address may have put in the place of its own.
    pub query: String,
    /// The beginning of its body, where the server may say more.
    pub text: String,
}

impl Refusal {
    pub(super) fn read(uri: Uri, ask: &Ask<'_>, response: Response<Body>) -> Self {
        let (parts, mut body) = response.into_parts();
        let mut text = Vec::new();
        let _ = body.as_reader().take(REFUSAL_BYTES).read_to_end(&mut text); // what came is enough
        let text = String::from_utf8_lossy(&text).into_owned();
        Self { status: parts.status, headers: parts.headers, uri, query: ask.query.clone(), text }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What stands between the tags of that name, if the body is XML.
    pub(super) fn element(&self, name: &str) -> Option<String> {
        let (_, rest) = self.text.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
        Some(entities.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)))
    }

    /// The message of a body that is JSON.
    fn json(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.text).ok()?;
        let places = ["/error/message", "/error", "/message", "/detail"];
        places.iter().find_map(|place| Some(body.pointer(place)?.as_str()?.to_owned()))
    }

    /// What the server says: status, and its message, shortened and without secrets of the request.
    pub(super) fn said(&self) -> String {
        let code = self.element("Code");
        let message = self.header("x-error-message").map(ToOwned::to_owned);
        let message = message.or_else(|| self.element("Message")).or_else(|| self.json());
        let said: Vec<_> = [code, message].into_iter().flatten().map(|text| self.clean(&text)).collect();
        let said: Vec<_> = said.into_iter().filter(|text| !text.is_empty()).collect();
        let status = self.status.to_string();
        let status = status.trim_end_matches(" <unknown status code>");
        if said.is_empty() { status.to_owned() } else { format!("{status} ({})", said.join(": ")) }
    }

    /// `text` on one line, short, and without any value of the query, where signatures are.
    fn clean(&self, text: &str) -> String {
        let lower = text.to_ascii_lowercase();
        if ["authorization", "bearer ", "basic "].iter().any(|word| lower.contains(word)) {
            return "(hidden)".to_owned(); // it may repeat what the request brought
        }
        let mut text = text.split(|letter: char| letter.is_control() || letter == ' ');
        let mut text = text.by_ref().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        for value in
            self.uri.query().unwrap_or_default().split('&').filter_map(|pair| Some(pair.split_once('=')?.1))
        {
            let plain = percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
            for secret in [value, &plain].into_iter().filter(|value| value.len() >= 8) {
                text = text.replace(secret, "(hidden)");
            }
        }
        if text.len() > SAID_BYTES {
            let end = (0..=SAID_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
            text.truncate(end);
            text.push_str("...");
        }
        text.trim_end_matches('.').to_owned()
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("status", &self.status).finish_non_exhaustive()
    }
}
