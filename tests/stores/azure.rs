//! Azure's blobs: keys, signatures in the URL, other versions.

use std::sync::Arc;

use flashpack::{
    Result,
    remote::{Object, Opening, Stores as _},
};

use crate::{
    BYTES, object, read,
    server::{Reply, Server},
    stores,
};

const KEY: (&str, &str) = ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LXNlY3JldA==");

fn open(server: &Server, settings: &[(&str, &str)]) -> Result<Arc<dyn Object>> {
    let endpoint = server.url("/me");
    let own = [("AZURE_STORAGE_ACCOUNT_NAME", "me"), ("AZURE_STORAGE_ENDPOINT", &*endpoint)];
    let settings: Vec<_> = settings.iter().copied().chain(own).collect();
    stores(&settings).open("az://box/folder/a key", &Opening::default())
}

#[test]
fn blobs_are_read_by_signed_ranges() {
    let server = Server::of(object());
    let opened = open(&server, &[KEY]).unwrap();
    assert_eq!(read(&opened, BYTES - 10, 10).unwrap(), object()[BYTES - 10..]);
    assert_eq!(server.ranges(), ["bytes=0-65535", "bytes=199990-199999"]);
    for request in server.requests() {
        assert_eq!(request.target, "/me/box/folder/a%20key");
        assert!(request.header("authorization").unwrap().starts_with("SharedKey me:"));
        assert!(request.header("x-ms-version").is_some() && request.header("x-ms-date").is_some());
    }
}

#[test]
fn what_a_signature_grants_is_not_told() {
    let body = "<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code><Message>bad sig=top-secret-x</Message></Error>";
    let server = Server::new(move |_, _| Reply::new(403, body));
    let error = open(&server, &[("AZURE_STORAGE_SAS_TOKEN", "?sv=2&sig=top-secret-x")]).unwrap_err();
    assert_eq!(error.errno(), Some(13));
    let text = error.to_string();
    assert!(text.starts_with("az://box/folder/a key: ") && text.contains("403"), "{text}");
    assert!(text.contains("AuthenticationFailed") && !text.contains("top-secret"), "{text}");
    assert_eq!(server.requests()[0].target, "/me/box/folder/a%20key?sv=2&sig=top-secret-x");
}

#[test]
fn another_version_is_a_change() {
    let server = Server::new(|request, number| match number {
        0 => Reply::object(request, &object()),
        _ => Reply::new(412, "<Error><Code>ConditionNotMet</Code></Error>"),
    });
    let opened = open(&server, &[KEY]).unwrap();
    let error = read(&opened, 100_000, 10).unwrap_err().to_string();
    assert!(error.ends_with("was changed while it was read: open it again"), "{error}");
    assert_eq!(server.requests()[1].header("if-match"), Some("\"one\""));
}
