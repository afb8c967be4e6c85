//! What a load says of itself, before it starts and after it is done.

mod common;

use std::path::{Path, PathBuf};

use common::{pack, tensor};
use flashpack::{
    ErrorKind, Progress,
    explain::{Explanation, explain},
    format::{DType, layout::Order},
    load::{self, Options, Place},
    model::Model,
    plan::{Ignore, Selection},
    stats::{Limit, Report},
    verify::verify,
};
use tempfile::TempDir;

const BYTES: u64 = 4 * (512 << 10) + 5;

fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let tensors = [tensor("weight", DType::Float32, &[512, 1 << 10]), tensor("flags", DType::Uint8, &[5])];
    pack(&path, &tensors, Order::Given, 128).unwrap();
    (folder, path)
}

fn explained(path: &Path, options: Options) -> Explanation {
    explain(path, "cpu", Selection::Except(&Ignore::default()), options).unwrap()
}

#[test]
fn an_eager_load_is_told_before_and_reported_after() {
    let (_folder, path) = model();
    let options = Options { eager: Some(true), ..Options::default() };
    let told = explained(&path, options);
    assert_eq!(told.file_bytes, std::fs::metadata(&path).unwrap().len());
    assert_eq!((told.mode, told.tensors, told.tensor_bytes), ("read", 2, BYTES));
    assert_eq!(told.chunks, told.verified_chunks);
    assert_eq!((told.staging_bytes, told.read_ahead), (0, None));
    assert!(told.bound.seconds > 0.0 && told.bound.copy_rate > 0.0);
    assert_eq!(told.bound.sample_bytes, told.payload_bytes);
    let text = told.to_string();
    assert!(text.starts_with("in short    the load takes "), "{text}");
    for line in [
        "\nload        2 tensors of 2.10 MB to cpu: read into memory\n",
        "chunks verified",
        "2.10 MB for the tensors",
        "bound       at least",
        "(a copy in memory: ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }

    load::load(&path, Selection::Except(&Ignore::default()), options, Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.bytes, report.threads), (told.read_bytes, told.threads));
    assert_eq!(report.verified_bytes, told.verified_bytes);
    assert!(!report.read.is_zero() && !report.hash.is_zero() && report.staging.is_zero());
    assert!(report.wall > report.open);
    assert_ne!(report.limit(), None);
    assert_eq!(report.to_json()["limit"].as_str(), report.limit().map(Limit::name));
}

#[test]
fn unverified_reads_take_no_time_for_digests() {
    let (_folder, path) = model();
    let options = Options { eager: Some(true), verify: Some(false), ..Options::default() };
    let told = explained(&path, options);
    assert_eq!((told.verified_chunks, told.bound.checksum_rate), (0, None));
    assert!(told.to_string().contains("checksums   xxh3_64, not looked at by this load"), "{told}");
    load::load(&path, Selection::Except(&Ignore::default()), options, Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.verified_bytes, report.hash.is_zero()), (0, true));
}

#[test]
fn a_mapping_reads_nothing_and_has_no_limit() {
    let (_folder, path) = model();
    let told = explained(&path, Options::default());
    assert_eq!((told.mode, told.read_bytes, told.memory_bytes), ("map", 0, 0));
    assert!(told.mapped_bytes >= BYTES);
    assert!(told.read_ahead.is_some());
    assert_eq!(told.bound.limit, None);
    assert!(told.to_string().contains("none: nothing is read before a tensor is touched"), "{told}");
    assert!(told.to_string().starts_with("in short    the tensors are there at once; each part"), "{told}");
    let asked_not_to = explained(&path, Options { eager: Some(false), ..Options::default() });
    assert!(matches!(asked_not_to.read_ahead, Some((false, _))));
    load::load(&path, Selection::Except(&Ignore::default()), Options::default(), Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.bytes, report.limit()), (0, None));
}

#[test]
fn a_device_takes_staging_buffers_for_all_threads() {
    let (_folder, path) = model();
    let told = explained(&path, Options { place: Place::Device, ..Options::default() });
    assert_eq!(told.mode, "stage");
    assert!((1..=2 * told.threads).contains(&told.staging_buffers));
    assert!(told.staging_bytes as u64 >= told.staging_buffers as u64 * told.task_bytes);
    assert!(told.to_string().contains("the link to the device is not measured"), "{told}");
}

#[test]
fn selections_and_refusals_are_those_of_loads() {
    let (_folder, path) = model();
    let names = ["flags".to_owned()];
    let options = Options { eager: Some(true), ..Options::default() };
    let told = explain(&path, "cpu", Selection::Names(&names), options).unwrap();
    assert_eq!((told.tensors, told.tensor_bytes), (1, 5));
    let unknown = explain(&path, "cpu", Selection::Names(&["other".to_owned()]), options).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Argument);
    assert_eq!(
        load::prepare(&Model::open(&path).unwrap(), Selection::Names(&["other".to_owned()]), options)
            .unwrap_err()
            .to_string(),
        unknown.to_string()
    );
}

#[test]
fn verification_is_reported_like_a_load() {
    let (_folder, path) = model();
    let found = verify(&path, None, Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.bytes, report.verified_bytes), (found.payload_bytes, found.payload_bytes));
    assert!(!report.hash.is_zero() && !report.read.is_zero());
}

#[test]
fn a_failed_load_leaves_the_last_report() {
    let (_folder, path) = model();
    verify(&path, None, Progress::SILENT).unwrap();
    let before = Report::last();
    assert!(before.is_some());
    assert!(verify(&path.with_extension("gone"), None, Progress::SILENT).is_err());
    assert_eq!(Report::last(), before);
}
