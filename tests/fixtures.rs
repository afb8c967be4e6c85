//! Files of flashpack 0.4.5 give exactly their tensors; hostile files are refused, each with its own words.

use std::{collections::BTreeMap, path::PathBuf};

use flashpack::{
    ErrorKind, Progress, Reader,
    load::{self, Options},
    plan::{Ignore, Selection},
};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    files: BTreeMap<String, GoldenFile>,
}

#[derive(Deserialize)]
struct GoldenFile {
    order: Vec<String>,
    tensors: BTreeMap<String, GoldenTensor>,
}

#[derive(Deserialize)]
struct GoldenTensor {
    dtype: String,
    shape: Vec<u64>,
    sha256: String,
}

#[derive(Deserialize)]
struct Hostile {
    files: BTreeMap<String, HostileFile>,
}

#[derive(Deserialize)]
struct HostileFile {
    class: String,
    must: String,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
}

fn read_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

#[test]
fn golden_files_give_their_tensors_lazily_and_eagerly() {
    let golden: Golden = read_json("expected.json");
    assert_eq!(golden.files.len(), 46);
    for (file, expected) in &golden.files {
        for eager in [false, true] {
            let options = Options { eager: Some(eager), verify: None, ..Options::default() };
            let everything = Ignore::default();
            let mut loaded =
                load::load(&fixture(file), Selection::Except(&everything), options, Progress::SILENT)
                    .unwrap();
            assert_eq!(loaded.names, expected.order, "{file}");
            for number in 0..loaded.views.len() {
                let name = loaded.names[number].clone();
                let tensor = &expected.tensors[&name];
                assert_eq!(loaded.views[number].dtype.name(), tensor.dtype, "{file}: {name}");
                assert_eq!(*loaded.views[number].shape, *tensor.shape, "{file}: {name}");
                let digest = hex(&Sha256::digest(loaded.to_bytes(number)));
                assert_eq!(digest, tensor.sha256, "{file}: {name}, eager: {eager}");
            }
        }
    }
}

/// Words that the error of each class of damage must contain.
fn words(class: &str) -> &'static [&'static str] {
    match class {
        "file shorter than 16 bytes" => &["File too small"],
        "bad magic" => &["Bad magic"],
        "footer length past the file start" => &["Corrupt footer length"],
        "footer not UTF-8" => &["not UTF-8"],
        "footer not JSON" => &["not JSON", "expected an object"],
        "footer not an object" => &["expected an object"],
        "unknown format" => &["Unexpected format"],
        "unknown dtype" => &["Unsupported dtype"],
        "keys missing or of the wrong type" => {
            &["missing", "expected a string", "expected a sequence", "expected an integer", "empty list"]
        }
        "negative or overflowing numbers" => {
            &["`-", "overflows", "18446744073709551615", "e+19", "4611686018427387904 exceeds"]
        }
        "a block past the payload" => &["past the payload"],
        "a record past its block" => &["reaches past its macroblock"],
        "length != product(shape)" => &["but its shape"],
        "length_bytes != length_elems * itemsize" => &["has length_bytes"],
        "blocks that overlap" | "records that overlap" => &["overlaps"],
        "duplicate names" => &["duplicate name"],
        "misaligned records" => &["is misaligned"],
        "a record whose macroblock does not exist" => &["macroblock"],
        "compressed macroblocks" => &["is compressed (fpz, codec \"zstd-splitplane-v"],
        "unknown keys that may change what bytes mean" => &["with the key \"codec\", which this version"],
        other => panic!("no words for the class {other:?}"),
    }
}

#[test]
fn hostile_files_are_refused_in_their_own_words() {
    let hostile: Hostile = read_json("hostile/expected.json");
    assert_eq!(hostile.files.len(), 87);
    for (file, expected) in &hostile.files {
        let path = fixture("hostile").join(file);
        match (Reader::open(&path), expected.must.as_str()) {
            (Ok(_), "accept") => {}
            (Err(error), "refuse") => {
                assert_eq!(error.kind(), ErrorKind::Format, "{file}: {error}");
                let text = error.to_string();
                assert!(text.starts_with(path.to_str().unwrap()), "{text}");
                assert!(
                    words(&expected.class).iter().any(|word| text.contains(word)),
                    "{}: {text}",
                    expected.class
                );
            }
            (outcome, must) => panic!("{file} must be {must}ed: {outcome:?}"),
        }
    }
}
