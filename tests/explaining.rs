//! What a load says of itself, before it starts and after it is done.

mod common;

use std::path::{Path, PathBuf};

use common::{pack, tensor};
use flashpack::{
    ErrorKind, Progress,
    explain::explain,
    format::{DType, layout::Order},
    load::{self, Options, Place},
    model::Model,
    plan::{Ignore, Selection},
    stats::{Limit, Report},
    verify::verify,
};
use serde_json::Value;
use tempfile::TempDir;

const BYTES: u64 = 4 * (512 << 10) + 5;

fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let tensors = [tensor("weight", DType::Float32, &[512, 1 << 10]), tensor("flags", DType::Uint8, &[5])];
    pack(&path, &tensors, Order::Given, 128).unwrap();
    (folder, path)
}

fn explained(path: &Path, options: Options) -> Value {
    explain(path, Selection::Except(&Ignore::default()), options).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn an_eager_load_is_told_before_and_reported_after() {
    let (_folder, path) = model();
    let options = Options { eager: Some(true), ..Options::default() };
    let told = explained(&path, options);
    assert_eq!(number(&told["source"]["file_bytes"]), std::fs::metadata(&path).unwrap().len());
    let (work, bound) = (&told["work"], &told["bound"]);
    assert_eq!((&work["mode"], number(&work["tensors"])), (&"read".into(), 2));
    assert_eq!(number(&work["tensor_bytes"]), BYTES);
    assert_eq!(work["chunks"], work["verified_chunks"]);
    assert_eq!((number(&work["staging_bytes"]), &work["read_ahead"]), (0, &Value::Null));
    assert!(bound["seconds"].as_f64().unwrap() > 0.0 && bound["copy_rate"].as_f64().unwrap() > 0.0);
    assert_eq!(bound["sample_bytes"], told["source"]["payload_bytes"]);

    load::load(&path, Selection::Except(&Ignore::default()), options, Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!(report.bytes, number(&work["read_bytes"]));
    assert_eq!(report.verified_bytes, number(&work["verified_bytes"]));
    assert_eq!(report.threads as u64, number(&work["threads"]));
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
    assert_eq!(number(&told["work"]["verified_chunks"]), 0);
    assert_eq!(told["bound"]["checksum_rate"], Value::Null);
    load::load(&path, Selection::Except(&Ignore::default()), options, Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.verified_bytes, report.hash.is_zero()), (0, true));
}

#[test]
fn a_mapping_reads_nothing_and_has_no_limit() {
    let (_folder, path) = model();
    let told = explained(&path, Options::default());
    let work = &told["work"];
    assert_eq!(
        (&work["mode"], number(&work["read_bytes"]), number(&work["memory_bytes"])),
        (&"map".into(), 0, 0)
    );
    assert!(number(&work["mapped_bytes"]) >= BYTES);
    assert!(work["read_ahead"].is_array());
    assert_eq!(told["bound"]["limit"], Value::Null);
    let asked_not_to = explained(&path, Options { eager: Some(false), ..Options::default() });
    assert_eq!(asked_not_to["work"]["read_ahead"][0], false);
    load::load(&path, Selection::Except(&Ignore::default()), Options::default(), Progress::SILENT).unwrap();
    let report = Report::last().unwrap();
    assert_eq!((report.bytes, report.limit()), (0, None));
}

#[test]
fn a_device_takes_staging_buffers_for_all_threads() {
    let (_folder, path) = model();
    let told = explained(&path, Options { place: Place::Device, ..Options::default() });
    let work = &told["work"];
    assert_eq!(work["mode"], "stage");
    let buffers = number(&work["staging_buffers"]);
    assert!((1..=2 * number(&work["threads"])).contains(&buffers));
    assert!(number(&work["staging_bytes"]) >= buffers * number(&work["task_bytes"]));
}

#[test]
fn selections_and_refusals_are_those_of_loads() {
    let (_folder, path) = model();
    let names = ["flags".to_owned()];
    let options = Options { eager: Some(true), ..Options::default() };
    let told = explain(&path, Selection::Names(&names), options).unwrap();
    assert_eq!((number(&told["work"]["tensors"]), number(&told["work"]["tensor_bytes"])), (1, 5));
    let unknown = explain(&path, Selection::Names(&["other".to_owned()]), options).unwrap_err();
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
