//! Files out of files, and comparisons: what the command line's `extract`, `merge`, `rename` and `diff` stand on.

mod common;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use common::{Tensor, pack, tensor};
use flashpack::{
    ErrorKind, Progress, Reader,
    compare::compare,
    format::{DEFAULT_ALIGN_BYTES, DType, checksum::Algorithm, layout::Order},
    load::{self, load},
    model::Model,
    plan::{Ignore, Selection},
    repack::{Request, Take, repack},
};

fn written(path: &Path, tensors: &[Tensor]) {
    pack(path, tensors, Order::LargestFirst, DEFAULT_ALIGN_BYTES).unwrap();
}

fn request(sources: &[&Path], takes: &[(usize, &str, &str)], destination: &Path) -> Request {
    let take = |&(model, name, new_name): &(usize, &str, &str)| Take {
        model,
        name: name.to_owned(),
        new_name: new_name.to_owned(),
    };
    Request {
        models: sources.iter().map(|path| Arc::new(Model::open(path).unwrap())).collect(),
        tensors: takes.iter().map(take).collect(),
        destination: destination.to_owned(),
        dtype: None,
        metadata: BTreeMap::new(),
        algorithm: Algorithm::default(),
        shard_bytes: None,
        compress: None,
        replaces: false,
    }
}

fn loaded(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let everything = Ignore::default();
    let options = load::Options { eager: Some(true), ..load::Options::default() };
    let mut loaded = load(path, Selection::Except(&everything), options, Progress::SILENT).unwrap();
    let names = loaded.names.clone();
    names.into_iter().enumerate().map(|(number, name)| (name, loaded.to_bytes(number))).collect()
}

#[test]
fn tensors_of_two_models_come_under_new_names_and_ties_stay() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, out] = ["first", "second", "out"].map(|name| folder.path().join(name));
    let mut tied = tensor("tied", DType::Float32, &[5, 7]);
    tied.spec.tied_to = Some(0);
    let weight = tensor("weight", DType::Float32, &[5, 7]);
    tied.bytes.clone_from(&weight.bytes);
    written(&first, &[weight.clone(), tied, tensor("empty", DType::Int64, &[0, 3])]);
    let large = tensor("weight", DType::Uint8, &[65 << 20]); // more than two batches
    written(&second, std::slice::from_ref(&large));
    let takes = [(0, "weight", "a"), (1, "weight", "b"), (0, "tied", "c"), (0, "empty", "d")];
    let made = repack(request(&[&first, &second], &takes, &out), Progress::SILENT).unwrap().unwrap();
    assert_eq!(made.tensors, 4);
    assert_eq!(made.bytes, std::fs::metadata(&out).unwrap().len());
    let tensors = loaded(&out);
    assert_eq!(tensors["a"], weight.bytes);
    assert_eq!(tensors["c"], weight.bytes);
    assert!(tensors["b"] == large.bytes && tensors["d"].is_empty());
    let reader = Reader::open(&out).unwrap();
    let place = |name: &str| {
        let record = &reader.index().records()[reader.index().find(name).unwrap()];
        reader.index().file_range(record)
    };
    assert_eq!(place("a"), place("c"));
}

#[test]
fn damage_is_not_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let [source, out] = ["source", "out"].map(|name| folder.path().join(name));
    written(&source, &[tensor("a", DType::Uint8, &[3 << 20]), tensor("b", DType::Uint8, &[10])]);
    let mut bytes = std::fs::read(&source).unwrap();
    bytes[(3 << 20) + 9] ^= 1; // in a chunk that is read in part
    std::fs::write(&source, bytes).unwrap();
    let error = repack(request(&[&source], &[(0, "b", "b")], &out), Progress::SILENT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Checksum);
    assert!(!out.exists());
    repack(request(&[&source], &[(0, "a", "a")], &out), Progress::SILENT).unwrap();
}

#[cfg_attr(windows, ignore = "wine lets nobody replace a file that is open")]
#[test]
fn what_takes_the_place_of_a_file_meanwhile_is_not_lost() {
    for shard_bytes in [None, Some(100)] {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["path", "other"].map(|name| folder.path().join(name));
        written(&path, &[tensor("a", DType::Uint8, &[300]), tensor("b", DType::Uint8, &[300])]);
        let in_place = || {
            let takes = [(0, "a", "c"), (0, "b", "d")];
            Request { replaces: true, shard_bytes, ..request(&[&path], &takes, &path) }
        };
        let late = in_place();
        written(&other, &[tensor("a", DType::Uint8, &[7]), tensor("b", DType::Uint8, &[7])]);
        std::fs::rename(&other, &path).unwrap();
        let error = repack(late, Progress::SILENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("was changed"), "{error}");
        assert_eq!(loaded(&path)["a"].len(), 7);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        repack(in_place(), Progress::SILENT).unwrap();
    }
}

#[test]
fn what_makes_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [source, out] = ["source", "out"].map(|name| folder.path().join(name));
    written(&source, &[tensor("a", DType::Float32, &[3]), tensor("b", DType::Float32, &[3])]);
    let refused = |takes: &[(usize, &str, &str)]| {
        let error = repack(request(&[&source], takes, &out), Progress::SILENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        error.to_string()
    };
    assert!(refused(&[(0, "c", "c")]).contains("holds no tensor named \"c\""));
    assert!(refused(&[(1, "a", "a")]).contains("no model 1"));
    assert!(refused(&[(0, "a", "x"), (0, "b", "x")]).contains("duplicate name \"x\""));
    assert!(refused(&[]).contains("No tensors"));
    let casts = Request { dtype: Some(DType::Float8E4m3fn), ..request(&[&source], &[(0, "a", "a")], &out) };
    assert!(repack(casts, Progress::SILENT).unwrap().is_none(), "only torch makes this cast");
    assert!(!out.exists());
}

#[test]
fn a_comparison_finds_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let large = tensor("large", DType::Int32, &[1_000_001]);
    let same = tensor("same", DType::Bfloat16, &[9]);
    written(
        &first,
        &[large.clone(), same.clone(), tensor("cut", DType::Uint8, &[4]), tensor("old", DType::Bool, &[1])],
    );
    let mut changed = large;
    *changed.bytes.last_mut().unwrap() ^= 1;
    written(
        &second,
        &[tensor("new", DType::Bool, &[1]), tensor("cut", DType::Uint8, &[2, 2]), same, changed],
    );
    let found = compare(&first, &second, Progress::SILENT).unwrap();
    assert_eq!(
        (found.only_first, found.only_second, found.equal),
        (vec!["old".into()], vec!["new".into()], 1)
    );
    let names: Vec<_> =
        found.different.iter().map(|it| (&*it.name, it.values.map(|it| it.different))).collect();
    assert_eq!(names, [("large", Some(1)), ("cut", None)]);
    let itself = compare(&first, &first, Progress::SILENT).unwrap();
    assert_eq!((itself.equal, itself.different.len()), (4, 0));
}
