//! What lies in a folder of a store.

use std::{collections::BTreeSet, mem};

use http::{HeaderMap, Method, header::LINK};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    address::{Address, encoded_whole},
    client::Client,
    exchange::{Exchange, Meter},
    message::Ask,
};
use crate::{
    error::{Error, ErrorKind, Result},
    remote::Entry,
};

/// How a kind of store lists what has a prefix.
pub(super) struct Kind {
    /// The query.
    query: &'static str,
    /// What is added to the query for a folder alone, and for all below it.
    depths: [&'static str; 2],
    /// Whether the folder is in the address, and not a prefix in the query.
    is_in_address: bool,
    /// Reads an answer.
    page: fn(&HeaderMap, &str) -> Result<Page>,
}

/// A part of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Whole keys, with their bytes.
    files: Vec<(String, u64)>,
    /// What the query has for the next part, if there is one.
    next: Option<String>,
}

/// S3's.
pub(super) const S3: Kind =
    Kind { query: "list-type=2", depths: [DELIMITER, ""], is_in_address: false, page: s3_page };
/// Google's.
pub(super) const GOOGLE: Kind =
    Kind { query: "", depths: [DELIMITER, ""], is_in_address: false, page: google_page };
/// Azure's.
pub(super) const AZURE: Kind = Kind {
    query: "restype=container&comp=list",
    depths: [DELIMITER, ""],
    is_in_address: false,
    page: azure_page,
};
/// The Hub's.
pub(super) const HUB: Kind =
    Kind { query: "", depths: ["", "recursive=true"], is_in_address: true, page: hub_page };

const DELIMITER: &str = "delimiter=%2F";

/// The objects in the folder `key` of what `address` is, sorted by name, as a store of this `kind` lists them; if `deep`
/// those below it, too.
///
/// # Errors
/// Those of [`Exchange::text`], an answer that is no list, and a list that leads back to a part of it that has come.
pub(super) fn list(
    client: &Client,
    address: &dyn Address,
    kind: &Kind,
    key: &str,
    deep: bool,
) -> Result<Vec<Entry>> {
    let folder = key.trim_end_matches('/');
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let wanted = if kind.is_in_address || prefix.is_empty() {
        String::new()
    } else {
        format!("prefix={}", encoded_whole(&prefix))
    };
    let first = joined([kind.query, kind.depths[usize::from(deep)], &wanted]);
    let (mut entries, mut query, meter) = (Vec::new(), first.clone(), Meter::default());
    let mut asked = BTreeSet::new();
    loop {
        let ask = Ask::query(Method::GET, &*query);
        let (headers, text) = Exchange::new(client, address, &meter).text(&ask)?;
        let page = (kind.page)(&headers, &text)?;
        let files = page.files.into_iter().filter_map(|(key, bytes)| {
            let name = key.strip_prefix(&prefix)?;
            let is_wanted = !name.is_empty() && !name.ends_with('/') && (deep || !name.contains('/'));
            is_wanted.then(|| Entry { name: name.to_owned(), bytes })
        });
        entries.extend(files);
        // The Hub's next query is whole.
        let next = page.next.map(|next| if kind.is_in_address { next } else { joined([&first, &next]) });
        let Some(next) = next else { break };
        asked.insert(mem::replace(&mut query, next));
        if asked.contains(&query) {
            return Err(endless());
        }
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

/// Those that are not empty, as one query.
fn joined<const N: usize>(parts: [&str; N]) -> String {
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("&")
}

fn xml<T: DeserializeOwned>(text: &str) -> Result<T> {
    quick_xml::de::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| malformed(&error.to_string()))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| malformed(&error.to_string()))
}

fn malformed(why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("its server answered with what is no list ({why})"))
}

fn endless() -> Error {
    let what =
        "its server's list does not end, but leads back to a part that has come: name a file of the folder";
    Error::new(ErrorKind::Io, what)
}

fn next(name: &str, token: Option<String>) -> Option<String> {
    token.filter(|token| !token.is_empty()).map(|token| format!("{name}={}", encoded_whole(&token)))
}

fn s3_page(_: &HeaderMap, text: &str) -> Result<Page> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct List {
        #[serde(default)]
        contents: Vec<Object>,
        next_continuation_token: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Object {
        key: String,
        size: u64,
    }
    let list: List = xml(text)?;
    let files = list.contents.into_iter().map(|object| (object.key, object.size)).collect();
    Ok(Page { files, next: next("continuation-token", list.next_continuation_token) })
}

fn google_page(_: &HeaderMap, text: &str) -> Result<Page> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        #[serde(default)]
        items: Vec<Object>,
        next_page_token: Option<String>,
    }
    #[derive(Deserialize)]
    struct Object {
        name: String,
        /// Digits: JavaScript's numbers have no 64 bits.
        size: String,
    }
    let list: List = json(text)?;
    let bytes = |size: String| size.parse().map_err(|_| malformed(&format!("a size is {size:?}")));
    let files = list.items.into_iter().map(|object| Ok((object.name, bytes(object.size)?)));
    Ok(Page { files: files.collect::<Result<_>>()?, next: next("pageToken", list.next_page_token) })
}

fn azure_page(_: &HeaderMap, text: &str) -> Result<Page> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct List {
        #[serde(default)]
        blobs: Blobs,
        next_marker: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Blobs {
        #[serde(default, rename = "Blob")]
        all: Vec<Blob>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Blob {
        name: String,
        properties: Properties,
    }
    #[derive(Deserialize)]
    struct Properties {
        #[serde(rename = "Content-Length")]
        bytes: u64,
    }
    let list: List = xml(text)?;
    let files = list.blobs.all.into_iter().map(|blob| (blob.name, blob.properties.bytes)).collect();
    Ok(Page { files, next: next("marker", list.next_marker) })
}

fn hub_page(headers: &HeaderMap, text: &str) -> Result<Page> {
    #[derive(Deserialize)]
    struct Item {
        #[serde(rename = "type")]
        kind: String,
        path: String,
        #[serde(default)]
        size: u64,
    }
    let items: Vec<Item> = json(text)?;
    let files =
        items.into_iter().filter(|item| item.kind == "file").map(|item| (item.path, item.size)).collect();
    let links = headers.get(LINK).and_then(|links| links.to_str().ok()).unwrap_or_default();
    let next = links.split(',').find_map(|link| {
        let (url, what) = link.trim().strip_prefix('<')?.split_once('>')?;
        what.contains("rel=\"next\"").then(|| url.split_once('?').map(|(_, query)| query.to_owned()))?
    });
    Ok(Page { files, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(files: &[(&str, u64)], next: Option<&str>) -> Page {
        let files = files.iter().map(|(key, bytes)| ((*key).to_owned(), *bytes)).collect();
        Page { files, next: next.map(ToOwned::to_owned) }
    }

    #[test]
    fn lists_in_xml_are_read() {
        let s3 = "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>
            <Contents><Key>f/a &amp; b</Key><Size>7</Size><ETag>x</ETag></Contents>
            <CommonPrefixes><Prefix>f/g/</Prefix></CommonPrefixes><Contents><Key>f/c</Key><Size>0</Size></Contents>
            <IsTruncated>true</IsTruncated><NextContinuationToken>1/+=</NextContinuationToken></ListBucketResult>";
        let expected = page(&[("f/a & b", 7), ("f/c", 0)], Some("continuation-token=1%2F%2B%3D"));
        assert_eq!(s3_page(&HeaderMap::new(), s3).unwrap(), expected);
        let azure = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"c\"><Blobs>
            <Blob><Name>f/a</Name><Properties><Content-Length>7</Content-Length><Etag>x</Etag></Properties></Blob>
            <BlobPrefix><Name>f/g/</Name></BlobPrefix>
            <Blob><Name>f/b</Name><Properties><Content-Length>8</Content-Length></Properties></Blob>
            </Blobs><NextMarker>m</NextMarker></EnumerationResults>";
        assert_eq!(
            azure_page(&HeaderMap::new(), azure).unwrap(),
            page(&[("f/a", 7), ("f/b", 8)], Some("marker=m"))
        );
        let empty = "<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>";
        assert_eq!(azure_page(&HeaderMap::new(), empty).unwrap(), Page::default());
        assert_eq!(s3_page(&HeaderMap::new(), "<ListBucketResult/>").unwrap(), Page::default());
        for wrong in ["", "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>", "{}"] {
            let error = s3_page(&HeaderMap::new(), wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{wrong}");
        }
    }

    #[test]
    fn lists_in_json_are_read() {
        let google = r#"{"kind": "x", "items": [{"name": "f/a", "size": "7"}], "nextPageToken": "t"}"#;
        assert_eq!(google_page(&HeaderMap::new(), google).unwrap(), page(&[("f/a", 7)], Some("pageToken=t")));
        assert_eq!(google_page(&HeaderMap::new(), "{}").unwrap(), Page::default());
        assert!(google_page(&HeaderMap::new(), r#"{"items": [{"name": "f/a", "size": "x"}]}"#).is_err());
        let hub =
            r#"[{"type": "directory", "path": "g"}, {"type": "file", "path": "a", "size": 7, "oid": "x"}]"#;
        let link =
            "<https://hub/api/models/o/r/tree/main?cursor=a%3D&limit=1>; rel=\"next\"".parse().unwrap();
        let headers = [(LINK, link)].into_iter().collect();
        assert_eq!(hub_page(&headers, hub).unwrap(), page(&[("a", 7)], Some("cursor=a%3D&limit=1")));
        assert_eq!(hub_page(&HeaderMap::new(), "[]").unwrap(), Page::default());
    }
}
