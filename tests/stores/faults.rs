//! Servers that fail: what is asked again, and what is said in the end.

use std::time::Duration;

use flashpack::{
    ErrorKind,
    remote::{
        Opening, Stores as _,
        stores::{AllStores, Patience, Settings},
    },
};

use crate::{
    BYTES, hasty, object, open, read,
    server::{Reply, Request, Server},
};

/// Opens an object of a server that answers reads of it by `handler`, and reads its first 100 000 bytes.
fn read_of(
    handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> (Server, flashpack::Result<Vec<u8>>) {
    let server = Server::new(move |request, number| match number {
        0 => Reply::object(request, &object()),
        _ => handler(request, number - 1),
    });
    let opened = open(&server.url("/x")).unwrap();
    let bytes = read(&opened, 0, 100_000);
    let traffic = opened.traffic();
    assert_eq!(traffic.requests, server.requests().len() as u64);
    (server, bytes)
}

#[test]
fn only_the_rest_of_a_range_is_asked_for_again() {
    let (server, bytes) = read_of(|request, number| match number {
        0 => Reply::object(request, &object()).cut(30_000),
        1 => Reply { stalls: true, ..Reply::object(request, &object()).cut(20_000) },
        _ => Reply::object(request, &object()),
    });
    assert_eq!(bytes.unwrap(), object()[..100_000]);
    assert_eq!(server.ranges()[1..], ["bytes=0-99999", "bytes=30000-99999", "bytes=50000-99999"]);
}

#[test]
fn a_shorter_range_than_asked_for_is_taken_as_far_as_it_goes() {
    let (server, bytes) = read_of(|request, _| {
        let range = request.range(BYTES).unwrap();
        let range = range.start..range.end.min(range.start + 40_000);
        let said = format!("bytes {}-{}/{BYTES}", range.start, range.end - 1);
        Reply::new(206, &object()[range]).with("Content-Range", said)
    });
    assert_eq!(bytes.unwrap(), object()[..100_000]);
    assert_eq!(server.ranges()[1..], ["bytes=0-99999", "bytes=40000-99999", "bytes=80000-99999"]);
}

#[test]
fn what_may_pass_is_asked_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let (server, bytes) = read_of(move |request, number| match number {
            0 | 1 => Reply::new(status, "busy").with("Retry-After", "0"),
            _ => Reply::object(request, &object()),
        });
        assert_eq!(bytes.unwrap(), object()[..100_000], "{status}");
        assert_eq!(server.requests().len(), 4, "{status}");
    }
}

#[test]
fn tries_end_with_what_the_last_one_saw() {
    let body = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let (server, bytes) = read_of(move |_, _| Reply::new(503, body));
    let error = bytes.unwrap_err();
    assert_eq!(server.requests().len(), 1 + 8);
    let text = error.to_string();
    assert!(text.starts_with(&server.url("/x: its server answered 503")), "{text}");
    assert!(text.contains("(SlowDown: Please reduce your request rate)"), "{text}");
    assert!(text.contains("in 8 tries over"), "{text}");
}

#[test]
fn tries_begin_anew_with_each_byte_that_comes() {
    let (server, bytes) = read_of(|request, _| Reply::object(request, &object()).cut(5_000));
    assert_eq!(bytes.unwrap(), object()[..100_000]);
    assert_eq!(server.requests().len(), 1 + 20);
}

#[test]
fn a_server_that_wants_more_time_than_there_is_gets_none() {
    let (server, bytes) = read_of(|_, _| Reply::new(429, "").with("Retry-After", "3600"));
    let text = bytes.unwrap_err().to_string();
    assert!(text.contains("429"), "{text}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_stalled_server_is_given_up() {
    let server = Server::new(|request, _| Reply { stalls: true, ..Reply::object(request, &object()).cut(0) });
    let patience = Patience { tries: 2, stall: Duration::from_millis(50), ..hasty() };
    let error = AllStores::new(patience, Settings::default())
        .open(&server.url("/x"), &Opening::default())
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sent nothing for too long, in 2 tries over"), "{text}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_drips_is_given_up() {
    let server = Server::new(|request, _| Reply { drips: true, ..Reply::object(request, &object()) });
    let patience = Patience { tries: 2, stall: Duration::from_millis(100), ..hasty() };
    let opened = AllStores::new(patience, Settings::default()).open(&server.url("/x"), &Opening::default());
    let text = opened.unwrap_err().to_string();
    assert!(text.contains("sent nothing for too long, in 2 tries over"), "{text}");
}

#[test]
fn one_load_is_of_one_version() {
    let other = |request: &Request| {
        let mut reply = Reply::object(request, &object());
        reply.headers[1].1 = "\"two\"".to_owned();
        reply
    };
    let longer = |request: &Request| Reply::object(request, &[object(), vec![0]].concat());
    for kind in 0..4 {
        let (server, bytes) = read_of(move |request, number| match kind {
            0 => Reply::new(412, ""),
            1 => other(request),
            2 => longer(request),
            _ if number == 0 => Reply::object(request, &object()).cut(10),
            _ => other(request),
        });
        let error = bytes.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("was changed while it was read"), "{kind}: {error}");
        assert_eq!(server.requests().len(), if kind == 3 { 3 } else { 2 }, "{kind}");
    }
}

#[test]
fn another_range_than_asked_for_is_no_answer() {
    let (_, bytes) = read_of(|_, _| {
        Reply::new(206, &object()[1..100]).with("Content-Range", format!("bytes 1-99/{BYTES}"))
    });
    let text = bytes.unwrap_err().to_string();
    assert!(text.contains("bytes 1-99/200000"), "{text}");
    let (server, bytes) = read_of(|_, _| Reply::new(200, object()));
    assert_eq!(bytes.unwrap(), object()[..100_000], "the beginning of the whole is the range");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn each_status_has_its_error() {
    for (status, errno, words) in [
        (400, None, "answered 400"),
        (401, Some(13), "refuses access, with 401"),
        (403, Some(13), "refuses access, with 403"),
        (404, Some(2), "no such object"),
        (410, Some(2), "no such object"),
        (501, None, "answered 501"),
    ] {
        let server = Server::new(move |_, _| Reply::new(status, r#"{"error": "said\nso"}"#));
        let error = open(&server.url("/x")).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, errno), "{status}");
        let text = error.to_string();
        assert!(text.starts_with(&server.url("/x: ")) && text.contains(words), "{text}");
        assert!(text.contains("(said so)"), "{text}");
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[test]
fn a_server_that_has_answered_before_may_come_back() {
    let server = Server::new(|request, _| Reply::object(request, &object()).cut(65_536));
    let opened = open(&server.url("/x")).unwrap();
    drop(server);
    let text = read(&opened, 0, 10).unwrap_err().to_string();
    assert!(text.contains("cannot be reached") && text.contains("in 8 tries"), "{text}");
}

#[test]
fn closed_ports_and_unknown_names_are_tried_three_times() {
    let closed = Server::of(vec![]).url("/x");
    for (url, words) in [(&*closed, "cannot be reached"), ("http://nowhere.invalid/x", "no address")] {
        let text = open(url).unwrap_err().to_string();
        assert!(text.contains(words) && text.contains("in 3 tries over"), "{text}");
    }
}
