//! Signatures: what they are of, what they notice, and what signing leaves as it was.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::tensor;
use flashpack::{
    ErrorKind, Progress, Reader, Result,
    format::{
        DType, TRAILER_BYTES,
        checksum::{self, Algorithm},
        footer,
        join::SET_KEY,
        layout::Order,
        signature,
    },
    pack::Packer,
    sign::{PrivateKey, PublicKey, sign},
    verify::verify,
};
use serde_json::{Value, json};

/// `printf 'flashpack signature v1\n' | cat - ROOT | openssl pkeyutl -sign -rawin -inkey private.pem`, where ROOT are the
/// 32 bytes that `checksums.footer` spells.
const ROOT: &str = "d4e5dfde7ab1ef12384e49a9d67f8c3f76eadfea87e301e1d7ab21dad5d48121";
const SIGNATURE: &str = "e74789e1a37d4cfb111035d1b6dc8770ef76cbac9527af2edac15d156b967ed6912e49d8a0fb6edb26bd348dcf5d4c1befc9d9ad2f4ccb7127f02cd4d622e70f";
const FINGERPRINT: &str = "sha256:06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9";

fn key_file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys")).join(name)
}

fn private() -> PrivateKey {
    PrivateKey::read(&key_file("private.pem")).unwrap()
}

fn public() -> PublicKey {
    PublicKey::read(&key_file("public.pem")).unwrap()
}

/// A file of several macroblocks, two chunks, and metadata.
fn pack(path: &Path, algorithm: Algorithm) {
    pack_with(path, algorithm, (checksum::CHUNK_BYTES + 5000) / 4);
}

/// The same with a first tensor of so many elements.
fn pack_with(path: &Path, algorithm: Algorithm, elems: u64) {
    let tensors = [
        tensor("large", DType::Float32, &[elems]),
        tensor("matrix", DType::Bfloat16, &[7, 3]),
        tensor("matrix.t", DType::Bfloat16, &[3, 7]),
        tensor("scalar", DType::Int64, &[]),
    ];
    let specs: Vec<_> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let metadata = BTreeMap::from([("licence".to_owned(), "mit".to_owned())]);
    let packer = Packer::create(path, &specs, Order::LargestFirst, 128, metadata, Progress::SILENT).unwrap();
    let mut packer = packer.digested_by(algorithm);
    let writes: Vec<_> = packer.writes().iter().map(|write| write.tensor).collect();
    for number in writes {
        packer.write(&tensors[number].bytes).unwrap();
    }
    packer.finish().unwrap();
}

fn signed(path: &Path) {
    pack(path, Algorithm::Blake3);
    sign(path, &private(), Progress::SILENT).unwrap();
}

/// Who signed the file, if `public` has to have.
fn check(path: &Path) -> Result<Option<PublicKey>> {
    verify(path, Some(&public()), Progress::SILENT).map(|report| report.signer)
}

fn footer_of(path: &Path) -> Value {
    serde_json::from_str(Reader::open(path).unwrap().footer()).unwrap()
}

fn payload_of(path: &Path) -> Vec<u8> {
    let mut image = fs::read(path).unwrap();
    let footer = Reader::open(path).unwrap().footer().len();
    image.truncate(image.len() - footer - TRAILER_BYTES);
    image
}

fn write(path: &Path, payload: &[u8], footer: &str) {
    fs::write(path, [payload, footer.as_bytes(), &footer::trailer(footer.as_bytes())].concat()).unwrap();
}

/// The footer with digests that are right for it and `payload`, as whoever changes a file leaves it.
fn with_new_digests(footer: &Value, payload: &[u8]) -> Result<Value> {
    with_new_digests_of(footer, payload, checksum::CHUNK_BYTES)
}

/// The same, of chunks of a size.
fn with_new_digests_of(footer: &Value, payload: &[u8], chunk_bytes: u64) -> Result<Value> {
    let mut footer = footer.clone();
    footer.as_object_mut().unwrap().remove("checksums");
    let index = footer::parse(footer.to_string().as_bytes(), payload.len() as u64)?;
    let algorithm = Algorithm::Blake3;
    let covered = &payload[..usize::try_from(index.payload_bytes()).unwrap()];
    let digests: Vec<_> =
        covered.chunks(usize::try_from(chunk_bytes).unwrap()).map(|chunk| algorithm.digest(chunk)).collect();
    footer["checksums"] = json!({
        "algorithm": algorithm.name(), "chunk_bytes": chunk_bytes,
        "digests": digests.iter().map(ToString::to_string).collect::<String>(),
        "footer": footer::index_digest(&index, algorithm, chunk_bytes, &digests).to_string(),
    });
    Ok(footer)
}

/// Paths to all that is no list or object in `value`.
fn leaves(value: &Value) -> Vec<String> {
    let below =
        |key: &str, value| leaves(value).into_iter().map(move |path| format!("/{key}{path}")).collect();
    match value {
        Value::Object(members) => {
            members.iter().flat_map(|(key, value)| -> Vec<_> { below(key, value) }).collect()
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            numbered.flat_map(|(number, item)| -> Vec<_> { below(&number.to_string(), item) }).collect()
        }
        _ => vec![String::new()],
    }
}

/// Other values for a leaf.
fn changed(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(number) => {
            let number = number.as_u64().unwrap();
            let others = [number.wrapping_sub(1), number + 1, 0, 1, 2, number * 2, number / 2];
            others.into_iter().filter(|&other| other != number).map(Value::from).collect()
        }
        Value::String(text) => {
            let mut flipped = text.clone().into_bytes();
            flipped[0] ^= 1;
            let others = ["float16", "int16", "uint64", "float32", "flashpack_v3", "xxh3_64", "large", ""];
            let others = others.into_iter().map(str::to_owned).chain(String::from_utf8(flipped).ok());
            others.filter(|other| other != text).map(Value::from).collect()
        }
        other => panic!("{other} is in no footer"),
    }
}

#[test]
fn the_signature_is_the_one_that_openssl_makes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    signed(&path);
    let footer = footer_of(&path);
    assert_eq!(footer["checksums"]["footer"], ROOT);
    let public_key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let expected = json!({"algorithm": "ed25519", "public_key": public_key, "signature": SIGNATURE});
    assert_eq!(footer["signature"], expected);
    assert_eq!(signature::message(&[7; 32])[..], [&b"flashpack signature v1\n"[..], &[7; 32]].concat());
    assert_eq!(check(&path).unwrap(), Some(public()));
    assert_eq!(public().fingerprint(), FINGERPRINT);
    assert_eq!(private().public(), public());
}

#[test]
fn signing_changes_the_signature_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    pack(&path, Algorithm::Blake3);
    // As another writer might leave it: spaces, escapes, keys that nobody knows, bytes that belong to no tensor.
    let (mut payload, footer) = (payload_of(&path), footer_of(&path).to_string());
    let unknown = r#"{ "fu\u0074ure" : {"b":[1.50, null],"a":"\u00e9"}, "signature":{"algorithm":"ml-dsa"},"#;
    let footer = footer.replacen('{', unknown, 1);
    payload.extend([0xAB; 100]);
    write(&path, &payload, &footer);
    for (key, name) in [("other_private.pem", "other_public.pem"), ("private.pem", "public.pem")] {
        sign(&path, &PrivateKey::read(&key_file(key)).unwrap(), Progress::SILENT).unwrap();
        let signer = PublicKey::read(&key_file(name)).unwrap();
        assert_eq!(verify(&path, Some(&signer), Progress::SILENT).unwrap().signer, Some(signer));
        assert_eq!(verify(&path, None, Progress::SILENT).unwrap().signer, Some(signer));
        let reader = Reader::open(&path).unwrap();
        assert!(
            reader.footer().contains(r#""future":{"b":[1.50, null],"a":"\u00e9"}"#),
            "{}",
            reader.footer()
        );
        let (mut before, mut after): (Value, Value) =
            (serde_json::from_str(&footer).unwrap(), serde_json::from_str(reader.footer()).unwrap());
        assert_eq!(after["signature"]["algorithm"], "ed25519");
        for footer in [&mut before, &mut after] {
            footer.as_object_mut().unwrap().remove("signature");
        }
        assert_eq!(after, before);
        assert_eq!(payload_of(&path), payload[..payload.len() - 100]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// What no digest covers: the sum of what the macroblocks say decides nothing, and nobody reads it.
const UNGUARDED: [&str; 1] = ["/total_elems"];

#[test]
fn a_change_of_any_number_or_word_of_the_footer_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    pack_with(&path, Algorithm::Blake3, 500);
    sign(&path, &private(), Progress::SILENT).unwrap();
    let (sound, payload) = (footer_of(&path), payload_of(&path));
    let (mut forged, mut tried) = (0, 0);
    for leaf in leaves(&sound).iter().filter(|leaf| !UNGUARDED.contains(&leaf.as_str())) {
        for value in changed(sound.pointer(leaf).unwrap()) {
            let mut footer = sound.clone();
            *footer.pointer_mut(leaf).unwrap() = value;
            write(&path, &payload, &footer.to_string());
            check(&path).expect_err(leaf);
            // Whoever changes it can make new digests, but no new signature.
            if let Ok(footer) = with_new_digests(&footer, &payload) {
                let is_digest = leaf.starts_with("/checksums");
                write(&path, &payload, &footer.to_string());
                let outcome = check(&path);
                assert_eq!(
                    outcome.as_ref().err().map(flashpack::Error::kind),
                    (!is_digest).then_some(ErrorKind::Signature),
                    "{leaf} {outcome:?}"
                );
                forged += u32::from(!is_digest);
            }
            tried += 1;
        }
    }
    assert!(tried > 200 && forged > 30, "{forged} of {tried}");
    write(&path, &payload, &sound.to_string());
    check(&path).unwrap();
}

#[test]
fn a_change_of_names_order_or_records_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    signed(&path);
    let (sound, payload) = (footer_of(&path), payload_of(&path));
    let changes: [fn(&mut Value); 5] = [
        |footer| footer["index"].as_array_mut().unwrap().swap(0, 1),
        |footer| drop(footer["index"].as_array_mut().unwrap().pop()),
        |footer| {
            let (one, other) = (footer["index"][1]["name"].take(), footer["index"][2]["name"].take());
            (footer["index"][1]["name"], footer["index"][2]["name"]) = (other, one);
        },
        |footer| drop(footer.as_object_mut().unwrap().remove("metadata")),
        |footer| footer["metadata"]["more"] = "words".into(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut footer = sound.clone();
        change(&mut footer);
        assert_ne!(footer, sound);
        let footer = with_new_digests(&footer, &payload).unwrap();
        write(&path, &payload, &footer.to_string());
        assert_eq!(check(&path).unwrap_err().kind(), ErrorKind::Signature, "{number}");
    }
}

#[test]
fn a_change_of_the_payload_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    signed(&path);
    let (footer, payload) = (footer_of(&path), payload_of(&path));
    let last = payload.len() - 1;
    for place in [0, 1 << 20, last - 4000, last] {
        let mut payload = payload.clone();
        payload[place] ^= 0x10;
        write(&path, &payload, &footer.to_string());
        assert_eq!(check(&path).unwrap_err().kind(), ErrorKind::Checksum);
        let footer = with_new_digests(&footer, &payload).unwrap();
        write(&path, &payload, &footer.to_string());
        assert_eq!(check(&path).unwrap_err().kind(), ErrorKind::Signature);
        assert_eq!(verify(&path, None, Progress::SILENT).unwrap_err().kind(), ErrorKind::Signature);
    }
}

#[test]
fn what_cannot_be_signed_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let refuse = |kind: ErrorKind, what: &str| {
        let before = fs::read(&path).unwrap();
        let error = sign(&path, &private(), Progress::SILENT).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    };
    pack(&path, Algorithm::Xxh3);
    refuse(ErrorKind::Unsupported, "only files with BLAKE3 checksums can be signed");
    let (mut footer, payload) = (footer_of(&path), payload_of(&path));
    footer.as_object_mut().unwrap().remove("checksums");
    write(&path, &payload, &footer.to_string());
    refuse(ErrorKind::Unsupported, "pack_to_file(…, checksum=\"blake3\")");
    pack(&path, Algorithm::Blake3);
    let (footer, mut payload) = (footer_of(&path), payload_of(&path));
    payload[(1 << 20) + 17] ^= 1;
    write(&path, &payload, &footer.to_string());
    refuse(ErrorKind::Checksum, "chunk 1 is damaged");
    fs::write(&path, b"no FlashPack file, and as long as one").unwrap();
    refuse(ErrorKind::Format, "Bad magic");
}

#[test]
fn signatures_that_hold_for_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    signed(&path);
    let (sound, payload) = (footer_of(&path), payload_of(&path));
    let told = |signature: &Value| {
        let mut footer = sound.clone();
        footer["signature"] = signature.clone();
        write(&path, &payload, &footer.to_string());
        let error = check(&path).unwrap_err();
        (error.kind(), error.to_string())
    };
    let of =
        |key: &str, digits: &str| json!({"algorithm": "ed25519", "public_key": key, "signature": digits});
    let key = sound["signature"]["public_key"].as_str().unwrap();
    // The neutral element as key and R, and s = 0: a signature of everything, unless it is looked at strictly.
    let neutral = format!("01{}", "0".repeat(62));
    for (signature, kind, what) in [
        (of(key, &"0".repeat(128)), ErrorKind::Signature, "does not hold"),
        (of(&format!("02{}", "0".repeat(62)), SIGNATURE), ErrorKind::Signature, "its public key is none"),
        (of(&neutral, &format!("{neutral}{}", "0".repeat(64))), ErrorKind::Signature, "is signed by the key"),
        (json!({"algorithm": "ml-dsa"}), ErrorKind::Signature, "is not signed"),
        (json!({"algorithm": "x509", "public_key": {"chain": []}}), ErrorKind::Signature, "is not signed"),
        (Value::Null, ErrorKind::Signature, "is not signed"),
        (of(&key[1..], SIGNATURE), ErrorKind::Format, "signature.public_key is not a 64-digit"),
        (of(key, &SIGNATURE[2..]), ErrorKind::Format, "signature.signature is not a 128-digit"),
        (json!({"algorithm": "ed25519"}), ErrorKind::Format, "signature.public_key is not a 64-digit"),
        (json!("ed25519"), ErrorKind::Format, "expected an object"),
        (json!({"public_key": key}), ErrorKind::Format, "missing field `algorithm`"),
    ] {
        let (found, message) = told(&signature);
        assert!(found == kind && message.contains(what), "{signature}: {message}");
    }
    // A file that says that everybody signed it: no key is asked for, and still it does not hold.
    told(&of(&neutral, &format!("{neutral}{}", "0".repeat(64))));
    let error = verify(&path, None, Progress::SILENT).unwrap_err();
    assert!(error.to_string().contains("does not hold"), "{error}");
}

#[test]
fn a_signature_without_blake3_digests_is_of_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    signed(&path);
    let signature = footer_of(&path)["signature"].clone();
    pack(&path, Algorithm::Xxh3);
    let (mut footer, payload) = (footer_of(&path), payload_of(&path));
    footer["signature"] = signature;
    write(&path, &payload, &footer.to_string());
    let error = check(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Signature);
    assert!(error.to_string().contains("no BLAKE3 checksums"), "{error}");
    Reader::open(&path).unwrap();
}

#[test]
fn each_of_several_files_has_to_be_signed() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.flashpack", "b.flashpack"].map(|name| folder.path().join(name));
    for (path, name) in paths.iter().zip(["one", "two"]) {
        let spec = tensor(name, DType::Float32, &[9]);
        let order = Order::LargestFirst;
        let packer = Packer::create(
            path,
            std::slice::from_ref(&spec.spec),
            order,
            128,
            BTreeMap::from([(SET_KEY.to_owned(), "one save".to_owned())]),
            Progress::SILENT,
        );
        let mut packer = packer.unwrap().digested_by(Algorithm::Blake3);
        packer.write(&spec.bytes).unwrap();
        packer.finish().unwrap();
    }
    let both = PathBuf::from(paths.each_ref().map(|path| path.to_str().unwrap()).join("\0"));
    assert_eq!(verify(&both, None, Progress::SILENT).unwrap().signer, None);
    sign(&paths[0], &private(), Progress::SILENT).unwrap();
    assert_eq!(verify(&both, None, Progress::SILENT).unwrap().signer, None);
    let error = check(&both).unwrap_err().to_string();
    assert!(error.starts_with(paths[1].to_str().unwrap()) && error.ends_with("is not signed"), "{error}");
    sign(&paths[1], &private(), Progress::SILENT).unwrap();
    assert_eq!(check(&both).unwrap(), Some(public()));
    sign(&paths[1], &PrivateKey::read(&key_file("other_private.pem")).unwrap(), Progress::SILENT).unwrap();
    let error = check(&both).unwrap_err().to_string();
    assert!(error.contains("is signed by the key sha256:") && error.ends_with(FINGERPRINT), "{error}");
    assert_eq!(verify(&both, None, Progress::SILENT).unwrap().signer, None);
    sign(&paths[1], &private(), Progress::SILENT).unwrap();

    // Each file's digests are of chunks of a size of their own, and all are compared.
    let (payload, footer) = (payload_of(&paths[1]), footer_of(&paths[1]));
    write(&paths[1], &payload, &with_new_digests_of(&footer, &payload, 4096).unwrap().to_string());
    sign(&paths[1], &private(), Progress::SILENT).unwrap();
    assert_eq!(check(&both).unwrap(), Some(public()));
    let mut damaged = fs::read(&paths[1]).unwrap();
    damaged[7] ^= 1;
    fs::write(&paths[1], &damaged).unwrap();
    assert_eq!(check(&both).unwrap_err().kind(), ErrorKind::Checksum);

    // Whoever lists files makes no model of those that were saved apart.
    for path in &paths {
        let (payload, mut footer) = (payload_of(path), footer_of(path));
        footer["metadata"].as_object_mut().unwrap().remove(SET_KEY);
        write(path, &payload, &with_new_digests(&footer, &payload).unwrap().to_string());
        sign(path, &private(), Progress::SILENT).unwrap();
        assert_eq!(check(path).unwrap(), Some(public()));
        let error = check(&both).unwrap_err().to_string();
        let of_the_first = format!("{}: is signed, but as a whole model", paths[0].display());
        assert!(error.starts_with(&of_the_first), "{error}");
    }
}

#[test]
fn what_is_no_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let pem = fs::read_to_string(key_file("private.pem")).unwrap();
    // An Ed448 key by its OID, half a key, no key, one behind more than a key file may hold.
    for text in [
        &*pem.replace("K2VwBCIE", "K2VxBCIE"),
        &pem[..pem.len() / 2],
        "",
        "\u{e9}",
        &format!("{}{pem}", "\n".repeat(1 << 20)),
    ] {
        fs::write(&path, text).unwrap();
        let error = PrivateKey::read(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains("key.pem: holds no Ed25519 private key"), "{error}");
        assert_eq!(PublicKey::read(&path).unwrap_err().kind(), ErrorKind::Argument);
    }
    assert!(PrivateKey::read(&key_file("public.pem")).is_err());
    assert!(PublicKey::read(&key_file("private.pem")).is_err());
    let missing = PublicKey::read(&folder.path().join("none.pem")).unwrap_err();
    assert_eq!((missing.kind(), missing.errno()), (ErrorKind::Io, Some(2)));
}
