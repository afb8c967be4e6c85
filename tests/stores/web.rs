//! Web servers: redirects, passwords, signed URLs.

use crate::{
    object, open, read,
    server::{Reply, Server},
};

#[test]
fn redirects_are_followed_once_and_again_when_they_expire() {
    let server = Server::new(|request, number| match &*request.target {
        "/first" => Reply::new(302, "").with("Location", format!("/signed?by={number}")),
        "/signed?by=0" if number > 2 => Reply::new(403, "expired"),
        _ => Reply::object(request, &object()),
    });
    let opened = open(&server.url("/first")).unwrap();
    for offset in [0, 1000, 2000] {
        assert_eq!(read(&opened, offset, 1000).unwrap(), object()[offset..offset + 1000]);
    }
    let targets: Vec<_> = server.requests().iter().map(|request| request.target.clone()).collect();
    let expected =
        ["/first", "/signed?by=0", "/signed?by=0", "/signed?by=0", "/first", "/signed?by=4", "/signed?by=4"];
    assert_eq!(targets, expected);
}

#[test]
fn redirects_in_a_circle_end() {
    let server = Server::new(|_, _| Reply::new(307, "").with("Location", "/x"));
    let text = open(&server.url("/x")).unwrap_err().to_string();
    assert!(text.contains("307"), "{text}");
    assert_eq!(server.requests().len(), 11);
}

#[test]
fn passwords_are_sent_to_their_server_alone() {
    let other = Server::of(object());
    let there = other.url("/there");
    let server = Server::new(move |request, _| match request.header("authorization") {
        Some("Basic bWU6c2VjcmV0") => Reply::new(302, "").with("Location", &*there),
        _ => Reply::new(401, ""),
    });
    let url = server.url("/x").replace("://", "://me:secret@");
    assert_eq!(read(&open(&url).unwrap(), 0, 10).unwrap(), object()[..10]);
    assert_eq!(other.requests()[0].header("authorization"), None);
    let text = open(&url.replace("secret", "secrets")).unwrap_err().to_string();
    assert!(text.contains("give user and password") && !text.contains("secrets"), "{text}");
}

#[test]
fn no_error_has_what_a_signed_url_grants() {
    let server = Server::new(|request, _| {
        let signature = request.target.split_once("Signature=").unwrap().1;
        Reply::new(403, format!("<Error><Code>No</Code><Message>Bad {signature}</Message></Error>"))
    });
    let text = open(&server.url("/x?Expires=1&Signature=abcdef%2F123456")).unwrap_err().to_string();
    assert!(text.contains("(No: Bad (hidden))"), "{text}");
    assert!(!text.contains("abcdef") && !text.contains("Signature"), "{text}");
    assert_eq!(server.requests()[0].target, "/x?Expires=1&Signature=abcdef%2F123456");
}
