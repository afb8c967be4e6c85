//! Ranges of bytes, and the versions that they are of.

use std::ops::Range;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED},
};

/// What `Content-Range` says: which bytes come, and how many there are.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, len) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, len): (u64, u64, u64) =
        (first.trim().parse().ok()?, last.trim().parse().ok()?, len.trim().parse().ok()?);
    (first <= last && last < len).then_some((first..last + 1, len))
}

/// What `Content-Length` says.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// What makes a store give one version of an object only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pin {
    /// Headers that a request for that version has.
    pub conditions: Vec<(HeaderName, HeaderValue)>,
    /// What its query has for that.
    pub query: String,
    /// Its name among the versions, which other bytes never have. None if the store has no such names.
    pub version: Option<String>,
    /// A weak ETag: no condition for a server, but what comes with another one is another version.
    pub weak: Option<HeaderValue>,
}

impl Pin {
    /// By a strong ETag; else by the time of the last change; else by nothing but its length.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if let Some(tag) = strong_tag(headers) {
            return Self { conditions: vec![(IF_MATCH, tag.clone())], version: text(tag), ..Self::default() };
        }
        let changed = headers.get(LAST_MODIFIED);
        let conditions = changed.map(|date| (IF_UNMODIFIED_SINCE, date.clone()));
        let weak = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"W/")).cloned();
        Self { conditions: conditions.into_iter().collect(), weak, ..Self::default() }
    }

    /// One that needs no conditions: whatever its address gives is this version.
    pub(super) fn fixed(version: &str) -> Self {
        Self { version: Some(version.to_owned()), ..Self::default() }
    }

    /// Whether an answer with these headers is of another version: not every server heeds conditions.
    pub(super) fn is_other(&self, headers: &HeaderMap) -> bool {
        let tag = self.weak.as_ref().zip(headers.get(ETAG));
        if tag.is_some_and(|(pinned, now)| opaque(now) != opaque(pinned)) {
            return true;
        }
        self.conditions.iter().any(|(name, pinned)| {
            let now = match *name {
                IF_MATCH => strong_tag(headers),
                IF_UNMODIFIED_SINCE => headers.get(LAST_MODIFIED),
                _ => None,
            };
            now.is_some_and(|now| now != pinned)
        })
    }
}

fn strong_tag(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"") && tag.len() > 2)
}

/// A tag without what says that it is weak.
fn opaque(tag: &HeaderValue) -> &[u8] {
    tag.as_bytes().strip_prefix(b"W/").unwrap_or(tag.as_bytes())
}

fn text(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn content_ranges_are_read() {
        let read = |value| content_range(&headers(&[("content-range", value)]));
        assert_eq!(read("bytes 2-4/10"), Some((2..5, 10)));
        for wrong in ["bytes */10", "bytes 4-2/10", "bytes 2-10/10", "items 2-4/10", "bytes 2-4/*", "2-4/10"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(content_range(&HeaderMap::new()), None);
    }

    #[test]
    fn the_best_that_a_store_tells_pins_the_version() {
        let date = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let name = |pin: &Pin| pin.conditions.first().map(|(name, _)| name.as_str().to_owned());
        let strong = Pin::of(&headers(&[("etag", "\"a\""), date]));
        assert_eq!((name(&strong).as_deref(), strong.version.as_deref()), (Some("if-match"), Some("\"a\"")));
        for weak in ["W/\"a\"", "\"\""] {
            let pin = Pin::of(&headers(&[("etag", weak), date]));
            assert_eq!((name(&pin).as_deref(), pin.version), (Some("if-unmodified-since"), None));
        }
        assert_eq!(Pin::of(&HeaderMap::new()), Pin::default());
        let weak = Pin::of(&headers(&[("etag", "W/\"a\""), date]));
        for (tag, is_other) in [("W/\"a\"", false), ("\"a\"", false), ("W/\"b\"", true), ("\"b\"", true)] {
            assert_eq!(weak.is_other(&headers(&[("etag", tag), date])), is_other, "{tag}");
        }
        assert!(!weak.is_other(&headers(&[date])));
        let others = [("\"a\"", false), ("\"b\"", true), ("W/\"b\"", false)];
        for (tag, is_other) in others {
            assert_eq!(strong.is_other(&headers(&[("etag", tag)])), is_other, "{tag}");
        }
        assert!(!strong.is_other(&HeaderMap::new()));
        let dated = Pin::of(&headers(&[date]));
        assert!(!dated.is_other(&headers(&[date, ("etag", "\"b\"")])));
        assert!(dated.is_other(&headers(&[("last-modified", "Sun, 06 Nov 1994 08:49:38 GMT")])));
    }
}
