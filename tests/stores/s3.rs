//! S3: signatures, regions, no credentials.

use std::sync::Arc;

use flashpack::{
    Result,
    remote::{Object, Opening, Stores as _},
};

use crate::{
    object, read,
    server::{Reply, Server},
    stores,
};

fn open(server: &Server, settings: &[(&str, &str)]) -> Result<Arc<dyn Object>> {
    let endpoint = server.url("");
    let settings: Vec<_> = settings.iter().copied().chain([("AWS_ENDPOINT_URL", &*endpoint)]).collect();
    stores(&settings).open("s3://bucket/folder/a key", &Opening::default())
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "someone"), ("AWS_SECRET_ACCESS_KEY", "secret")];

#[test]
fn requests_are_signed_for_their_region() {
    let server = Server::of(object());
    let opened = open(&server, &[KEYS[0], KEYS[1], ("AWS_REGION", "eu-central-1")]).unwrap();
    assert_eq!(read(&opened, 0, 1000).unwrap(), object()[..1000]);
    for request in server.requests() {
        assert_eq!(request.target, "/bucket/folder/a%20key");
        let signed = request.header("authorization").unwrap();
        assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=someone/"), "{signed}");
        assert!(signed.contains("/eu-central-1/s3/aws4_request"), "{signed}");
    }
}

#[test]
fn without_credentials_the_object_is_tried_as_a_public_one() {
    for settings in [&[][..], &[KEYS[0], KEYS[1], ("AWS_NO_SIGN_REQUEST", "true")]] {
        let server = Server::of(object());
        let opened = open(&server, settings).unwrap();
        assert_eq!(read(&opened, 0, 10).unwrap(), object()[..10]);
        assert!(server.requests().iter().all(|request| request.header("authorization").is_none()));
    }
}

#[test]
fn refusals_say_what_to_do() {
    let body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
    for (settings, words) in
        [(&[][..], "no credentials were found: set AWS_ACCESS_KEY_ID"), (&KEYS, "may read it")]
    {
        let server = Server::new(move |_, _| Reply::new(403, body));
        let error = open(&server, settings).unwrap_err();
        assert_eq!(error.errno(), Some(13));
        let text = error.to_string();
        assert!(text.starts_with("s3://bucket/folder/a key: ") && text.contains(words), "{text}");
        assert!(text.contains("403") && text.contains("AccessDenied: Access Denied"), "{text}");
        assert!(!text.contains("secret") && !text.contains("someone"), "{text}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn the_region_that_a_server_names_is_asked() {
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>ap-south-1</Region></Error>";
    for by_header in [true, false] {
        let server = Server::new(move |request, _| {
            match request.header("authorization").is_some_and(|signed| signed.contains("/ap-south-1/")) {
                true => Reply::object(request, &object()),
                false if by_header => Reply::new(301, "").with("x-amz-bucket-region", "ap-south-1"),
                false => Reply::new(400, body),
            }
        });
        let opened = open(&server, &KEYS).unwrap();
        assert_eq!(read(&opened, 0, 10).unwrap(), object()[..10]);
        assert_eq!(server.requests().len(), 3);
    }
}

#[test]
fn credentials_that_expired_are_looked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let write = {
        let file = file.clone();
        move |id: &str| {
            let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = secret\n");
            std::fs::write(&file, text).unwrap();
        }
    };
    write("first");
    let server = Server::new(move |request, number| {
        let is_first = request.header("authorization").unwrap().contains("Credential=first/");
        if number == 1 {
            write("second");
        }
        if is_first && number > 0 {
            return Reply::new(400, "<Error><Code>ExpiredToken</Code></Error>");
        }
        Reply::object(request, &object())
    });
    let opened = open(&server, &[("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())]).unwrap();
    assert_eq!(read(&opened, 0, 10).unwrap(), object()[..10]);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn what_is_set_up_and_fails_is_an_error_unless_a_later_place_has_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::write(&config, "[default]\ncredential_process = /nowhere/keys --of me\n").unwrap();
    let config = ("AWS_CONFIG_FILE", config.to_str().unwrap());
    let server = Server::of(object());
    let error = open(&server, &[config]).unwrap_err();
    assert_eq!(error.errno(), Some(13));
    let text = error.to_string();
    assert!(text.contains("credentials cannot be had (cannot run /nowhere/keys: "), "{text}");
    assert!(server.requests().is_empty(), "nothing is asked for as if there were no credentials");

    let given = r#"{"AccessKeyId": "role", "SecretAccessKey": "secret", "Token": "token",
        "Expiration": "2999-01-01T00:00:00Z"}"#;
    let container = Server::new(move |_, _| Reply::new(200, given));
    let opened = open(&server, &[config, ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url("/"))]);
    assert_eq!(read(&opened.unwrap(), 0, 10).unwrap(), object()[..10]);

    let named =
        [config, ("AWS_PROFILE", "default"), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url("/"))];
    let text = open(&server, &named).unwrap_err().to_string();
    assert!(text.contains("cannot run /nowhere/keys: "), "a profile that is named is meant: {text}");
}

#[test]
fn a_role_that_is_denied_access_is_not_asked_for_again() {
    let given = r#"{"AccessKeyId": "role", "SecretAccessKey": "secret", "Token": "token",
        "Expiration": "2999-01-01T00:00:00Z"}"#;
    let container = Server::new(move |_, _| Reply::new(200, given));
    let server = Server::new(|_, _| Reply::new(403, "<Error><Code>AccessDenied</Code></Error>"));
    let error = open(&server, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url("/"))]).unwrap_err();
    assert_eq!(error.errno(), Some(13));
    assert_eq!((server.requests().len(), container.requests().len()), (1, 1));
}

#[test]
fn machines_and_containers_with_a_role_need_no_keys() {
    let given = r#"{"Code": "Success", "Message": "", "AccessKeyId": "role", "SecretAccessKey": "secret", "Token": "token",
        "RoleArn": "arn", "Expiration": "2999-01-01T00:00:00Z"}"#;
    let metadata = Server::new(move |request, _| match (&*request.method, &*request.target) {
        ("PUT", "/latest/api/token") => Reply::new(200, "session"),
        ("GET", "/latest/meta-data/iam/security-credentials/") => Reply::new(200, "name"),
        ("GET", "/latest/meta-data/iam/security-credentials/name" | "/container") => Reply::new(200, given),
        _ => Reply::new(404, ""),
    });
    let (machine, container) = (metadata.url(""), metadata.url("/container"));
    let of_machine =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*machine)];
    for settings in [&of_machine[..], &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*container)]] {
        let server = Server::of(object());
        let opened = open(&server, settings).unwrap();
        assert_eq!(read(&opened, 0, 10).unwrap(), object()[..10]);
        for request in server.requests() {
            assert!(request.header("authorization").unwrap().contains("Credential=role/"));
            assert_eq!(request.header("x-amz-security-token"), Some("token"));
        }
    }
    assert_eq!(metadata.requests().len(), 3 + 1, "credentials are looked for once");
}
