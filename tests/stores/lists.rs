//! Folders, over as many answers as they take, and what is removed.

use flashpack::{
    ErrorKind, Result,
    remote::{Entry, Stores as _},
};

use crate::{
    server::{Reply, Server},
    stores,
};

/// What is in the folder at `url` of the store that these settings lead to.
fn list(url: &str, settings: &[(&str, &str)]) -> Result<Vec<(String, u64)>> {
    let names = |entries: Vec<Entry>| entries.into_iter().map(|entry| (entry.name, entry.bytes)).collect();
    stores(settings).list(url, false).map(names)
}

fn expected() -> Vec<(String, u64)> {
    vec![("a".to_owned(), 1), ("b c".to_owned(), 2)]
}

fn targets(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|request| request.target).collect()
}

#[test]
fn s3_lists_a_prefix() {
    let server = Server::new(|_, number| {
        let (key, more) =
            [("f/b c", "<NextContinuationToken>n+</NextContinuationToken>"), ("f/a", "")][number];
        let folder = "<Contents><Key>f/</Key><Size>0</Size></Contents>";
        let file = format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", 2 - number);
        Reply::new(200, format!("<ListBucketResult>{folder}{file}{more}</ListBucketResult>"))
    });
    let endpoint = server.url("");
    let settings = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_NO_SIGN_REQUEST", "1")];
    assert_eq!(list("s3://bucket/f", &settings).unwrap(), expected());
    let query = "/bucket/?list-type=2&delimiter=%2F&prefix=f%2F";
    assert_eq!(targets(&server), [query.to_owned(), format!("{query}&continuation-token=n%2B")]);
}

#[test]
fn google_lists_a_prefix() {
    let server = Server::new(|_, number| {
        let (name, more) = [("f/b c", r#", "nextPageToken": "n""#), ("f/a", "")][number];
        Reply::new(200, format!(r#"{{"items": [{{"name": "{name}", "size": "{}"}}]{more}}}"#, 2 - number))
    });
    assert_eq!(list("gs://bucket/f", &[("STORAGE_EMULATOR_HOST", &server.url(""))]).unwrap(), expected());
    let query = "/storage/v1/b/bucket/o?delimiter=%2F&prefix=f%2F";
    assert_eq!(targets(&server), [query.to_owned(), format!("{query}&pageToken=n")]);
}

#[test]
fn azure_lists_a_prefix() {
    let server = Server::new(|_, number| {
        let (name, more) = [("f/b c", "n"), ("f/a", "")][number];
        let bytes = format!("<Properties><Content-Length>{}</Content-Length></Properties>", 2 - number);
        let blobs = format!(
            "<Blobs><BlobPrefix><Name>f/g/</Name></BlobPrefix><Blob><Name>{name}</Name>{bytes}</Blob></Blobs>"
        );
        Reply::new(
            200,
            format!("<EnumerationResults>{blobs}<NextMarker>{more}</NextMarker></EnumerationResults>"),
        )
    });
    let endpoint = server.url("");
    let settings = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "me"),
        ("AZURE_STORAGE_ENDPOINT", &*endpoint),
        ("AZURE_SKIP_SIGNATURE", "1"),
    ];
    assert_eq!(list("az://box/f/", &settings).unwrap(), expected());
    let query = "/box?restype=container&comp=list&delimiter=%2F&prefix=f%2F";
    assert_eq!(targets(&server), [query.to_owned(), format!("{query}&marker=n")]);
}

#[test]
fn the_hub_lists_a_folder_of_a_revision() {
    let server = Server::new(|_, number| {
        let reply = |name, bytes| {
            let folder = r#"{"type": "directory", "path": "f/g"}"#;
            Reply::new(200, format!(r#"[{folder}, {{"type": "file", "path": "f/{name}", "size": {bytes}}}]"#))
        };
        match number {
            0 => reply("b c", 2).with("Link", "<https://hub/api/x?cursor=n%3D>; rel=\"next\""),
            _ => reply("a", 1),
        }
    });
    let settings = [("HF_ENDPOINT", &*server.url("")), ("HF_TOKEN", "secret")];
    assert_eq!(list("hf://org/repo@v1/f", &settings).unwrap(), expected());
    let tree = "/api/models/org/repo/tree/v1/f";
    assert_eq!(targets(&server), [tree.to_owned(), format!("{tree}?cursor=n%3D")]);
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer secret")));
}

/// The names below the folder at `url`.
fn deep_list(url: &str, settings: &[(&str, &str)]) -> Vec<String> {
    let entries = stores(settings).list(url, true).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn a_deep_list_has_what_lies_below() {
    let server = Server::new(|_, _| {
        let keys = ["f/", "f/g/", "f/g/b", "f/a", "fg/c"];
        let files = keys.map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>"));
        Reply::new(200, format!("<ListBucketResult>{}</ListBucketResult>", files.concat()))
    });
    let endpoint = server.url("");
    let settings = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_NO_SIGN_REQUEST", "1")];
    assert_eq!(deep_list("s3://bucket/f/", &settings), ["a", "g/b"]);
    assert_eq!(targets(&server), ["/bucket/?list-type=2&prefix=f%2F"]);
    let server = Server::new(|_, _| Reply::new(200, r#"{"items": [{"name": "g/b", "size": "1"}]}"#));
    assert_eq!(deep_list("gs://bucket", &[("STORAGE_EMULATOR_HOST", &server.url(""))]), ["g/b"]);
    assert_eq!(targets(&server), ["/storage/v1/b/bucket/o"]);
    let server = Server::new(|_, _| Reply::new(200, r#"[{"type": "file", "path": "f/g/b", "size": 1}]"#));
    assert_eq!(deep_list("hf://org/repo/f", &[("HF_ENDPOINT", &server.url(""))]), ["g/b"]);
    assert_eq!(targets(&server), ["/api/models/org/repo/tree/main/f?recursive=true"]);
}

#[test]
fn what_is_no_list_is_an_error() {
    let server = Server::new(|_, _| Reply::new(200, "<html></html>"));
    let error = list("gs://bucket/f", &[("STORAGE_EMULATOR_HOST", &server.url(""))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.to_string().starts_with("gs://bucket/f: its server answered with what is no list"),
        "{error}"
    );
}

#[test]
fn a_list_that_leads_back_is_an_error() {
    for tokens in [["a", "b"], ["a", "a"]] {
        let server = Server::new(move |_, number| {
            let more = format!("<NextContinuationToken>{}</NextContinuationToken>", tokens[number % 2]);
            let status = if number < 9 { 200 } else { 404 };
            Reply::new(status, format!("<ListBucketResult>{more}</ListBucketResult>"))
        });
        let endpoint = server.url("");
        let settings = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_NO_SIGN_REQUEST", "1")];
        let error = list("s3://bucket/f", &settings).unwrap_err();
        assert!(error.to_string().contains("list does not end"), "{error}");
        assert_eq!(server.requests().len(), if tokens[0] == tokens[1] { 2 } else { 3 });
    }
}

#[test]
fn objects_are_removed_and_missing_ones_have_been() {
    for (status, is_removed) in [(204, true), (404, true), (403, false)] {
        let server = Server::new(move |_, _| Reply::new(status, ""));
        let endpoint = server.url("");
        let settings = [("AWS_ENDPOINT_URL", &*endpoint), ("AWS_NO_SIGN_REQUEST", "1")];
        assert_eq!(stores(&settings).remove("s3://bucket/key").is_ok(), is_removed, "{status}");
        let requests = server.requests();
        assert_eq!((&*requests[0].method, &*requests[0].target), ("DELETE", "/bucket/key"));
    }
}
