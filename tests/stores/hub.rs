//! The Hugging Face Hub: commits, signed URLs, tokens, its own cache.

use std::{fs, sync::Arc};

use flashpack::{
    ErrorKind, Result,
    remote::{Object, Opening, Stores as _},
};

use crate::{
    object, read,
    server::{Reply, Server},
    stores,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A network of the Hub's, whose URLs can be read so often, and the Hub.
fn hub(reads: usize) -> (Server, Server) {
    let network = Server::new(move |request, number| {
        if number % (reads + 1) == reads {
            Reply::new(403, "expired")
        } else {
            Reply::object(request, &object())
        }
    });
    let there = network.url("/file?Signature=granted");
    let hub = Server::new(move |_, _| {
        Reply::new(302, "")
            .with("Location", &*there)
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Size", object().len().to_string())
    });
    (network, hub)
}

fn open(hub: &Server, settings: &[(&str, &str)]) -> Result<Arc<dyn Object>> {
    let endpoint = hub.url("");
    let settings: Vec<_> =
        [("HF_ENDPOINT", &*endpoint)].into_iter().chain(settings.iter().copied()).collect();
    stores(&settings).open("hf://org/repo/folder/model.flashpack", &Opening::default())
}

#[test]
fn a_revision_is_resolved_once_and_its_url_renewed() {
    let (network, hub) = hub(3);
    let opened = open(&hub, &[("HF_TOKEN", "hf_secret")]).unwrap();
    for offset in [0, 1000, 2000, 3000] {
        assert_eq!(read(&opened, offset, 1000).unwrap(), object()[offset..offset + 1000]);
    }
    let targets: Vec<_> = hub.requests().iter().map(|request| request.target.clone()).collect();
    let at = |revision: &str| format!("/org/repo/resolve/{revision}/folder/model.flashpack");
    assert_eq!(targets, [at("main"), at(COMMIT)]);
    assert!(hub.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert!(network.requests().iter().all(|request| request.header("authorization").is_none()));
    assert_eq!(network.requests().len(), 6);
}

#[test]
fn refusals_say_what_to_do() {
    for (code, status, errno, words) in [
        ("GatedRepo", 403, 13, "accept the terms of"),
        ("RepoNotFound", 401, 13, "a private repository is loaded with HF_TOKEN"),
        ("EntryNotFound", 404, 2, "no such file in revision \"main\""),
        ("RevisionNotFound", 404, 2, "no revision \"main\""),
    ] {
        let hub = Server::new(move |_, _| Reply::new(status, "").with("X-Error-Code", code));
        let error = open(&hub, &[]).unwrap_err();
        assert_eq!(error.errno(), Some(errno), "{code}");
        let text = error.to_string();
        assert!(text.starts_with("hf://org/repo/folder/model.flashpack: ") && text.contains(words), "{text}");
    }
}

#[test]
fn files_that_only_xet_gives_are_refused() {
    let hub =
        Server::new(|_, _| Reply::new(302, "").with("Location", "/x").with("X-Linked-Size", "400000000001"));
    let error = open(&hub, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Xet"), "{error}");
    assert_eq!(hub.requests().len(), 1);
}

#[test]
fn a_file_that_was_downloaded_is_read_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("models--org--repo");
    let snapshot = repository.join("snapshots").join(COMMIT).join("folder");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("model.flashpack"), b"downloaded").unwrap();
    let cache = ("HF_HUB_CACHE", folder.path().to_str().unwrap());
    let (network, online) = hub(3);
    let offline = ("HF_HUB_OFFLINE", "1");
    let unreachable = Server::of(vec![]).url("");
    for (settings, asked) in
        [(&[cache][..], 1), (&[cache, offline], 1), (&[cache, ("HF_ENDPOINT", &*unreachable)], 1)]
    {
        let opened = open(&online, settings).unwrap();
        assert_eq!(read(&opened, 0, 10).unwrap(), b"downloaded");
        assert_eq!(opened.traffic().cached_bytes, 10);
        assert!(opened.note().unwrap().contains("huggingface_hub"));
        assert_eq!(online.requests().len(), asked);
    }
    let error = open(&online, &[offline, ("HF_HUB_CACHE", "/nowhere")]).unwrap_err();
    assert_eq!(error.errno(), Some(2));
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert!(network.requests().len() <= 1);
}

#[test]
fn a_deep_list_follows_a_repository_to_its_new_name() {
    let hub = Server::new(|request, _| match request.target.split_once("/old/") {
        Some((before, after)) => Reply::new(307, "").with("Location", format!("{before}/new/{after}")),
        None => Reply::new(200, r#"[{"type": "file", "path": "a/b", "size": 1}]"#),
    });
    let stores = stores(&[("HF_ENDPOINT", &hub.url(""))]);
    assert_eq!(stores.list("hf://old/repo", true).unwrap()[0].name, "a/b");
    let targets: Vec<_> = hub.requests().into_iter().map(|request| request.target).collect();
    let at = |owner| format!("/api/models/{owner}/repo/tree/main?recursive=true");
    assert_eq!(targets, [at("old"), at("new")]);
}

#[test]
fn a_deep_list_is_refused_once() {
    for status in [400, 401, 403, 404, 410] {
        let hub = Server::new(move |_, _| Reply::new(status, ""));
        stores(&[("HF_ENDPOINT", &hub.url(""))]).list("hf://org/repo", true).unwrap_err();
        assert_eq!(hub.requests().len(), 1, "{status}");
    }
}

#[test]
fn a_revision_is_pinned_once_for_several_openings() {
    let hub = Server::new(|_, _| Reply::new(200, format!(r#"{{"sha": "{COMMIT}", "private": false}}"#)));
    let stores = stores(&[("HF_ENDPOINT", &hub.url(""))]);
    for (url, pinned) in [
        ("hf://org/repo", format!("hf://models/org/repo@{COMMIT}")),
        ("hf://org/repo/a/", format!("hf://models/org/repo@{COMMIT}/a")),
        ("hf://datasets/org/repo@refs/pr/1/a-/-", format!("hf://datasets/org/repo@{COMMIT}/a-/-")),
    ] {
        assert_eq!(stores.pinned(url).unwrap(), pinned);
        assert_eq!(stores.pinned(&pinned).unwrap(), pinned);
    }
    let targets: Vec<_> = hub.requests().into_iter().map(|request| request.target).collect();
    let models = "/api/models/org/repo/revision/main";
    assert_eq!(targets, [models, models, "/api/datasets/org/repo/revision/refs%2Fpr%2F1"]);
}

#[test]
fn what_nobody_pins_stays() {
    let unreachable = Server::of(vec![]).url("");
    let mirror = Server::new(|_, _| Reply::new(404, ""));
    for endpoint in [unreachable, mirror.url("")] {
        let stores = stores(&[("HF_ENDPOINT", &endpoint)]);
        for url in ["hf://org/repo/file", "s3://bucket/file", "https://host/file?query"] {
            assert_eq!(stores.pinned(url).unwrap(), url);
        }
    }
}

#[test]
fn a_hub_that_names_no_commit_is_refused() {
    for (status, body, words) in [
        (200, r#"{"sha": "main"}"#, "does not say which commit"),
        (200, "<html>", "does not say which commit"),
        (401, "", "hf://org/repo"),
    ] {
        let hub = Server::new(move |_, _| Reply::new(status, body));
        let error = stores(&[("HF_ENDPOINT", &hub.url(""))]).pinned("hf://org/repo").unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
