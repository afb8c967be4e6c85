//! Objects that are written in parts: what each kind of store is sent, and when.

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use flashpack::{
    ErrorKind, Progress, Result,
    format::{
        DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    remote::{Stores as _, stores::AllStores},
    shards::{Request as Saving, Save},
};

use crate::{
    server::{Reply, Request, Server},
    stores,
};

/// Bytes of each part.
const PART: usize = 8 << 20;

fn bytes(count: usize) -> Vec<u8> {
    let some: Vec<u8> = (0..251).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    let mut all = some.repeat(count.div_ceil(251));
    all.truncate(count);
    all
}

/// Writes so many bytes to `url`, in pieces.
fn write(stores: &AllStores, url: &str, count: usize) -> Result<()> {
    let mut upload = stores.create(url, count as u64)?;
    bytes(count).chunks(3 << 20).try_for_each(|piece| upload.write(piece))?;
    upload.finish()
}

fn s3(server: &Server) -> AllStores {
    stores(&[("AWS_ENDPOINT_URL", &server.url("")), ("AWS_NO_SIGN_REQUEST", "1")])
}

fn gs(server: &Server) -> AllStores {
    stores(&[("STORAGE_EMULATOR_HOST", &server.url(""))])
}

fn az(server: &Server) -> AllStores {
    let endpoint = server.url("");
    let key = ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LXNlY3JldA==");
    stores(&[("AZURE_STORAGE_ACCOUNT_NAME", "me"), ("AZURE_STORAGE_ENDPOINT", &endpoint), key])
}

fn has(request: &Request, method: &str, query: &str) -> bool {
    request.method == method && request.target.contains(query)
}

/// A sound server of multipart uploads.
fn multipart(request: &Request) -> Reply {
    if has(request, "POST", "?uploads=") {
        return Reply::new(200, "<R><UploadId>an id/</UploadId></R>");
    }
    match request.target.split_once("partNumber=") {
        Some((_, number)) => {
            Reply::new(200, "").with("ETag", format!("\"{}\"", number.split('&').next().unwrap()))
        }
        None => Reply::new(200, "<CompleteMultipartUploadResult/>"),
    }
}

#[test]
fn s3_is_sent_parts_and_then_their_list() {
    let server = Server::new(|request, _| multipart(request));
    write(&s3(&server), "s3://bucket/a key", 2 * PART + 5).unwrap();
    let requests = server.requests();
    assert!(has(&requests[0], "POST", "/bucket/a%20key?uploads=") && requests.len() == 5);
    let mut sent: Vec<_> =
        requests[1..4].iter().map(|request| (request.target.clone(), request.body.clone())).collect();
    sent.sort();
    let part = |number| format!("/bucket/a%20key?partNumber={number}&uploadId=an%20id%2F");
    assert_eq!(
        sent.iter().map(|(target, _)| target.clone()).collect::<Vec<_>>(),
        [part(1), part(2), part(3)]
    );
    assert!(sent.into_iter().flat_map(|(_, body)| body).eq(bytes(2 * PART + 5)));
    let last = &requests[4];
    assert!(has(last, "POST", "/bucket/a%20key?uploadId=an%20id%2F"));
    let listed = |number| format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{number}\"</ETag></Part>");
    let list =
        format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", [1, 2, 3].map(listed).concat());
    assert_eq!(String::from_utf8_lossy(&last.body), list);
}

#[test]
fn what_fits_a_part_is_one_request() {
    for count in [0, 5, PART] {
        let server = Server::new(|_, _| Reply::new(201, ""));
        write(&s3(&server), "s3://bucket/key", count).unwrap();
        write(&gs(&server), "gs://bucket/a/b", count).unwrap();
        write(&az(&server), "az://box/key", count).unwrap();
        let requests = server.requests();
        let sent: Vec<_> = requests.iter().map(|request| (&*request.method, &*request.target)).collect();
        let google = ("POST", "/upload/storage/v1/b/bucket/o?name=a%2Fb&uploadType=media");
        assert_eq!(sent, [("PUT", "/bucket/key"), google, ("PUT", "/box/key")]);
        assert!(requests.iter().all(|request| request.body == bytes(count)));
        assert_eq!(requests[2].header("x-ms-blob-type"), Some("BlockBlob"));
    }
}

#[test]
fn parts_are_sent_again_by_themselves() {
    let refused = AtomicUsize::new(0);
    let server = Server::new(move |request, _| {
        let is_part = request.target.contains("partNumber=");
        if is_part && refused.fetch_add(1, Ordering::Relaxed) < 2 {
            Reply::new(503, "")
        } else {
            multipart(request)
        }
    });
    write(&s3(&server), "s3://bucket/key", 2 * PART).unwrap();
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn an_error_after_the_answer_has_begun_is_one() {
    let server = Server::new(|request, _| {
        let is_last = has(request, "POST", "?uploadId=");
        let error = "<Error><Code>InternalError</Code><Message>again</Message></Error>";
        if is_last { Reply::new(200, error) } else { multipart(request) }
    });
    let error = write(&s3(&server), "s3://bucket/key", PART + 1).unwrap_err().to_string();
    assert!(error.starts_with("s3://bucket/key: ") && error.contains("InternalError: again"), "{error}");
    assert!(has(server.requests().last().unwrap(), "DELETE", "/bucket/key?uploadId="));
}

/// Writes two parts to a server that answers `lost` to their list, if it is given, and then no longer knows of the upload.
/// It has an object of `len` bytes with this tag.
fn write_to_forgetful(
    lost: Option<&Reply>,
    len: usize,
    tag: &'static str,
    modified: &'static str,
) -> (Server, Result<()>) {
    let lost = Mutex::new(lost.cloned());
    let server = Server::new(move |request, _| {
        if has(request, "POST", "?uploadId=") {
            let gone = || Reply::new(404, "<Error><Code>NoSuchUpload</Code></Error>");
            return lost.lock().unwrap().take().unwrap_or_else(gone);
        }
        if request.method != "HEAD" {
            return multipart(request);
        }
        let found = Reply::new(200, bytes(len)).with("ETag", tag);
        found.with("Date", "Tue, 01 Dec 2026 12:00:00 GMT").with("Last-Modified", modified)
    });
    let written = write(&s3(&server), "s3://bucket/key", PART + 5);
    (server, written)
}

#[test]
fn an_upload_whose_last_answer_was_lost_is_known_by_its_object() {
    let tag = "\"0123456789abcdef0123456789abcdef-2\"";
    let [now, before] = ["Tue, 01 Dec 2026 12:00:00 GMT", "Tue, 01 Dec 2026 11:00:00 GMT"];
    for lost in [Reply::new(500, ""), Reply::new(200, "<Complete/>").cut(3)] {
        for (len, tag, modified, is_it) in [
            (PART + 5, tag, now, true),
            (PART + 5, "\"of-another-kind\"", now, true),
            (PART + 5, "\"0123456789abcdef0123456789abcdef-3\"", now, false),
            (PART + 4, tag, now, false),
            (PART + 5, tag, before, false),
            (PART + 5, tag, "no date", false),
        ] {
            let (server, written) = write_to_forgetful(Some(&lost), len, tag, modified);
            assert_eq!(written.is_ok(), is_it, "{len} {tag}: {written:?}");
            let last = if is_it { ("HEAD", "/bucket/key") } else { ("DELETE", "/bucket/key?uploadId=") };
            assert!(has(server.requests().last().unwrap(), last.0, last.1));
            let text = written.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(is_it || text.contains("did not confirm the end of the upload"), "{text}");
        }
    }
    let (server, written) = write_to_forgetful(None, PART + 5, tag, now);
    assert!(written.unwrap_err().to_string().contains("NoSuchUpload"), "no try has failed before");
    assert!(server.requests().iter().all(|request| request.method != "HEAD"));
}

#[test]
fn what_is_refused_or_dropped_is_given_up() {
    let server = Server::new(|request, _| {
        if request.target.contains("partNumber=2") { Reply::new(403, "") } else { multipart(request) }
    });
    let error = write(&s3(&server), "s3://bucket/key", 3 * PART).unwrap_err();
    assert_eq!(error.errno(), Some(13));
    assert!(has(server.requests().last().unwrap(), "DELETE", "/bucket/key?uploadId=an%20id%2F"));
    let server = Server::new(|request, _| multipart(request));
    let mut upload = s3(&server).create("s3://bucket/key", 2).unwrap();
    upload.write(&bytes(PART + 1)).unwrap();
    drop(upload);
    let requests = server.requests();
    assert!(has(requests.last().unwrap(), "DELETE", "/bucket/key?uploadId="));
    assert!(!requests.iter().any(|request| has(request, "POST", "?uploadId=")));
}

#[test]
fn google_is_sent_one_part_after_the_other_and_again_what_it_has_not_kept() {
    let kept = Mutex::new(0);
    let server = Server::new(move |request, number| {
        let mut kept = kept.lock().unwrap();
        let Some(range) = request.header("content-range") else {
            let session = format!("http://{}/session", request.header("host").unwrap());
            return Reply::new(200, "").with("Location", session);
        };
        *kept += if number == 1 { request.body.len() / 2 } else { request.body.len() };
        if range.ends_with("/*") {
            return Reply::new(308, "").with("Range", format!("bytes=0-{}", *kept - 1));
        }
        Reply::new(200, "{}")
    });
    write(&gs(&server), "gs://bucket/key", 2 * PART + 5).unwrap();
    let requests = server.requests();
    assert!(has(&requests[0], "POST", "/upload/storage/v1/b/bucket/o?name=key&uploadType=resumable"));
    let ranges: Vec<_> =
        requests[1..].iter().map(|request| request.header("content-range").unwrap()).collect();
    let (one, half) = (PART, PART / 2);
    let range = |start: usize, end: usize, total: &str| format!("bytes {start}-{}/{total}", end - 1);
    let total = (2 * one + 5).to_string();
    let expected = [
        range(0, one, "*"),
        range(half, one, "*"),
        range(one, 2 * one, "*"),
        range(2 * one, 2 * one + 5, &total),
    ];
    assert_eq!(ranges, expected);
    assert_eq!(requests[2].body, bytes(one)[half..]);
}

#[test]
fn google_is_sent_all_but_the_end_of_what_is_sealed() {
    let server = Server::new(|request, _| match request.header("content-range") {
        Some(range) if range.ends_with("/*") => {
            Reply::new(308, "").with("Range", range.trim_start_matches("bytes ").trim_end_matches("/*"))
        }
        Some(_) => Reply::new(200, "{}"),
        None => Reply::new(200, "")
            .with("Location", format!("http://{}/session", request.header("host").unwrap())),
    });
    let mut upload = gs(&server).create("gs://bucket/key", 0).unwrap();
    upload.write(&bytes(PART + 700_000)).unwrap();
    upload.seal().unwrap();
    let ranges = || -> Vec<_> {
        let requests = server.requests();
        requests.iter().filter_map(|request| request.header("content-range").map(str::to_owned)).collect()
    };
    assert_eq!(ranges(), ["bytes 0-8388607/*", "bytes 8388608-8912895/*"]);
    upload.finish().unwrap();
    assert_eq!(ranges()[2..], ["bytes 8912896-9088607/9088608"]);
}

#[test]
fn what_google_is_not_told_to_the_end_is_given_up() {
    let server = Server::new(move |request, number| match number {
        0 => Reply::new(200, "")
            .with("Location", format!("http://{}/session", request.header("host").unwrap())),
        _ => Reply::new(403, ""),
    });
    write(&gs(&server), "gs://bucket/key", 2 * PART).unwrap_err();
    assert!(has(server.requests().last().unwrap(), "DELETE", "/session"));
}

#[test]
fn what_google_has_kept_without_being_sent_it_is_an_error() {
    for last in ["8388608", "18446744073709551615"] {
        let server = Server::new(move |request, number| match number {
            0 => Reply::new(200, "")
                .with("Location", format!("http://{}/session", request.header("host").unwrap())),
            _ => Reply::new(308, "").with("Range", format!("bytes=0-{last}")),
        });
        let text = write(&gs(&server), "gs://bucket/key", 2 * PART).unwrap_err().to_string();
        assert!(text.contains("kept more than was sent"), "{text}");
    }
}

#[test]
fn azure_is_sent_blocks_and_then_their_names() {
    let server = Server::new(|_, _| Reply::new(201, ""));
    write(&az(&server), "az://box/key", 2 * PART + 5).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    let last = requests.last().unwrap();
    assert!(has(last, "PUT", "/box/key?comp=blocklist"));
    let list = String::from_utf8(last.body.clone()).unwrap();
    let names: Vec<_> = list.split("<Latest>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect();
    let block = |name: &&str| {
        let target = format!("/box/key?comp=block&blockid={}", name.replace('=', "%3D").replace('/', "%2F"));
        requests.iter().find(|request| request.target == target).unwrap().body.clone()
    };
    assert!(names.iter().flat_map(block).eq(bytes(2 * PART + 5)));
    assert!(
        requests.iter().all(|request| request.header("authorization").unwrap().starts_with("SharedKey me:"))
    );
}

#[test]
fn a_shard_has_been_sent_before_the_next_one_begins() {
    let server = Server::new(|request, _| multipart(request));
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "uploads::saves_shards", "--ignored", "--test-threads=1"])
        .envs([("AWS_ENDPOINT_URL", &*server.url("")), ("AWS_NO_SIGN_REQUEST", "1")])
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let requests = server.requests();
    let at = |method: &str, query: &str| requests.iter().position(|it| has(it, method, query)).unwrap();
    for number in 1..=2 {
        let [shard, next] =
            [number, number + 1].map(|number| format!("/model-0000{number}-of-00003.flashpack"));
        let begun = at("POST", &format!("{next}?uploads="));
        assert!(at("PUT", &format!("{shard}?partNumber=2&")) < begun, "its last part");
        assert!(at("POST", &format!("{shard}?uploadId=")) > begun, "it is put in place with the others");
    }
}

#[test]
#[ignore = "saves to the store that its environment names: run by the test above"]
fn saves_shards() {
    let spec = |number: usize| TensorSpec {
        name: number.to_string(),
        dtype: DType::Uint8,
        shape: vec![PART as u64 + 5],
        tied_to: None,
    };
    let saving = Saving {
        destination: "s3://bucket/model.flashpack".into(),
        order: Order::Given,
        align_bytes: 0,
        metadata: BTreeMap::new(),
        algorithm: Algorithm::Xxh3,
        shard_bytes: Some(PART as u64 + 5),
        compress: None,
    };
    let mut save = Save::begin(&[0, 1, 2].map(spec), saving, Progress::SILENT).unwrap();
    (0..3).for_each(|_| save.write(&bytes(PART + 5)).unwrap());
    save.finish().unwrap();
}

#[test]
fn what_is_only_read_says_what_to_do() {
    for (url, words) in [("hf://org/repo/file", "hf upload"), ("https://host/file", "s3://")] {
        let error = stores(&[]).create(url, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().starts_with(url) && error.to_string().contains(words), "{error}");
        assert_eq!(stores(&[]).remove(url).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
