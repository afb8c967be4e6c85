//! Opening, and what comes with it.

use flashpack::{
    ErrorKind,
    remote::{Opening, Stores as _},
};

use crate::{
    BYTES, object, open, read,
    server::{Reply, Server},
    stores,
};

#[test]
fn the_end_comes_with_the_opening() {
    let server = Server::of(object());
    let opened = open(&server.url("/x")).unwrap();
    assert_eq!(opened.len(), BYTES as u64);
    assert_eq!(read(&opened, BYTES - 65_536, 65_536).unwrap(), object()[BYTES - 65_536..]);
    assert_eq!(server.ranges(), ["bytes=-65536"]);
    assert_eq!(read(&opened, 0, BYTES).unwrap(), object());
    assert_eq!(server.ranges()[1..], ["bytes=0-134463"]);
    assert_eq!(server.requests()[1].header("if-match"), Some("\"one\""));
    opened.distrust(BYTES as u64 - 10, 5);
    assert_eq!(read(&opened, BYTES - 8, 8).unwrap(), object()[BYTES - 8..]);
    let traffic = opened.traffic();
    assert_eq!((traffic.requests, traffic.retries, traffic.connections), (3, 0, 1));
    assert_eq!(traffic.fetched_bytes, BYTES as u64 + 8);
    assert!(!traffic.latency.is_zero());
}

#[test]
fn the_beginning_comes_with_the_opening_where_the_header_is() {
    let server = Server::of(object());
    let opening = Opening { begins_with_header: true, ..Opening::default() };
    let opened = stores(&[]).open(&server.url("/x"), &opening).unwrap();
    assert_eq!(read(&opened, 8, 1000).unwrap(), object()[8..1008]);
    assert_eq!(read(&opened, 65_000, 1000).unwrap(), object()[65_000..66_000]);
    assert_eq!(server.ranges(), ["bytes=0-65535", "bytes=65536-65999"]);
}

#[test]
fn several_buffers_are_filled_by_one_request() {
    let server = Server::of(object());
    let opened = open(&server.url("/x")).unwrap();
    let (mut first, mut second) = (vec![0; 1000], vec![0; 3000]);
    opened.read_exact_at(&mut [&mut first, &mut [], &mut second], 500).unwrap();
    assert_eq!([first, second].concat(), object()[500..4500]);
    assert_eq!(server.ranges()[1..], ["bytes=500-4499"]);
}

#[test]
fn small_and_empty_objects_are_whole() {
    for len in [0, 1, 65_536] {
        for has_ranges in [true, false] {
            let bytes = object()[..len].to_vec();
            let server = Server::new(move |request, _| {
                if has_ranges { Reply::object(request, &bytes) } else { Reply::new(200, &*bytes) }
            });
            let opened = open(&server.url("/x")).unwrap();
            let requests = server.requests().len();
            assert_eq!(opened.len(), len as u64);
            assert_eq!(read(&opened, 0, len).unwrap(), object()[..len]);
            assert_eq!(server.requests().len(), requests, "{len} {has_ranges}");
            assert_eq!(opened.note(), None);
        }
    }
}

#[test]
fn a_server_without_ranges_is_read_once_from_beginning_to_end() {
    let server = Server::new(|_, number| match number {
        0 => Reply::new(200, object()).cut(70_000),
        _ => Reply::new(200, object()),
    });
    let opened = open(&server.url("/x")).unwrap();
    assert_eq!(opened.len(), BYTES as u64);
    for (offset, bytes) in [(0, BYTES), (100, 7), (BYTES - 1, 1)] {
        assert_eq!(read(&opened, offset, bytes).unwrap(), object()[offset..offset + bytes]);
    }
    assert_eq!(server.requests().len(), 2);
    assert!(opened.note().unwrap().contains("gives no ranges"));
}

#[test]
fn bytes_past_the_end_are_not_asked_for() {
    let server = Server::of(object());
    let opened = open(&server.url("/x")).unwrap();
    let error = read(&opened, BYTES - 1, 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("200000 bytes"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn what_is_no_store_is_an_argument_that_is_wrong() {
    for (url, what) in [("ftp://host/x", "s3://"), ("s3://", "s3://bucket/key"), ("hf://repo/file", "hf://")]
    {
        let error = open(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{url}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = stores(&[]).list("https://host/folder/", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = stores(&[]).remove("https://host/x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = stores(&[]).create("https://host/x", 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
