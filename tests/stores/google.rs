//! Google Cloud Storage: generations, emulators, tokens.

use flashpack::remote::{Opening, Stores as _};

use crate::{
    BYTES, object, read,
    server::{Reply, Server},
    stores,
};

#[test]
fn an_emulator_is_read_from_the_beginning() {
    let server = Server::of(object());
    let opened = stores(&[("STORAGE_EMULATOR_HOST", &server.url(""))])
        .open("gs://bucket/folder/a key", &Opening::default())
        .unwrap();
    assert_eq!(read(&opened, BYTES - 10, 10).unwrap(), object()[BYTES - 10..]);
    assert_eq!(server.ranges(), ["bytes=0-65535", "bytes=199990-199999"]);
    for request in server.requests() {
        assert_eq!(request.target, "/download/storage/v1/b/bucket/o/folder%2Fa%20key?alt=media");
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn another_generation_is_a_change() {
    let server = Server::new(|request, number| match number {
        0 => Reply::object(request, &object()).with("x-goog-generation", "17"),
        _ => Reply::new(412, r#"{"error": {"message": "conditionNotMet"}}"#),
    });
    let opened = stores(&[("STORAGE_EMULATOR_HOST", &server.url(""))])
        .open("gs://bucket/key", &Opening::default())
        .unwrap();
    let error = read(&opened, 100_000, 10).unwrap_err().to_string();
    assert_eq!(error, "gs://bucket/key: was changed while it was read: open it again");
    let target = &server.requests()[1].target;
    assert!(target.ends_with("/o/key?alt=media&ifGenerationMatch=17"), "{target}");
}

#[test]
fn a_key_file_that_cannot_be_used_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, r#"{"type": "service_account", "private_key": "secret"#).unwrap();
    for (file, words) in
        [(&*broken, "credentials cannot be had"), (&folder.path().join("none"), "cannot read ")]
    {
        let settings = [("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())];
        let error = stores(&settings).open("gs://bucket/key", &Opening::default()).unwrap_err();
        assert_eq!(error.errno(), Some(13), "{error}");
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
