//! Copies on this machine: what is asked of servers when there is one.

use std::{fs, path::Path};

use flashpack::remote::{Opening, Stores as _, Traffic};

use crate::{
    BYTES,
    server::{Reply, Server},
    stores,
};

/// Large enough to be kept.
fn large() -> Vec<u8> {
    (0..5 * BYTES).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

fn load(url: &str, settings: &[(&str, &str)], folder: &Path) -> Traffic {
    let opening = Opening { cache: Some(folder.to_owned()), ..Opening::default() };
    let opened = stores(settings).open(url, &opening).unwrap();
    let mut bytes = vec![0; large().len()];
    opened.read_exact_at(&mut [&mut bytes], 0).unwrap();
    assert!(bytes == large());
    opened.traffic()
}

#[test]
fn the_second_load_asks_for_the_version_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::of(large());
    load(&server.url("/x?X-Amz-Signature=1"), &[], folder.path());
    assert_eq!(server.requests().len(), 2);
    let traffic = load(&server.url("/x?X-Amz-Signature=2"), &[], folder.path());
    assert_eq!(server.ranges()[2..], ["bytes=-65536"]);
    assert_eq!((traffic.requests, traffic.cached_bytes), (1, large().len() as u64));
    load(&server.url("/y"), &[], folder.path());
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn buckets_of_two_endpoints_are_not_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Server::of(large()), Server::of(large()));
    for (server, requests) in [(&one, 2), (&one, 3), (&other, 2)] {
        let (endpoint, key) = (server.url(""), "AWS_ENDPOINT_URL");
        load("s3://bucket/key", &[(key, &endpoint), ("AWS_NO_SIGN_REQUEST", "1")], folder.path());
        assert_eq!(server.requests().len(), requests);
    }
}

#[test]
fn what_has_no_strong_version_is_not_kept() {
    for tag in ["W/\"one\"", ""] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new(move |request, _| {
            let mut reply = Reply::object(request, &large());
            reply.headers.retain(|(name, _)| *name != "ETag");
            reply.with("ETag", tag).with("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        });
        assert_eq!(load(&server.url("/x"), &[], folder.path()).cached_bytes, 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
