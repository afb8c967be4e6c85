//! safetensors to FlashPack and back.

mod common;

use std::{collections::BTreeMap, fs, path::PathBuf};

use common::{pack, tensor};
use flashpack::{
    ErrorKind, Progress, Reader,
    convert::{self, Request},
    format::{DType, checksum::Algorithm, layout::Order},
    load::{self, Options},
    model::weight_files,
    plan::{Ignore, Selection},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn request<'a>(sources: &'a [PathBuf], destination: &'a std::path::Path) -> Request<'a> {
    Request {
        sources,
        promised: None,
        destination,
        dtype: None,
        align_bytes: 128,
        ignore: Ignore::default(),
        algorithm: Algorithm::Xxh3,
        shard_bytes: None,
        compress: None,
    }
}

fn load_all(path: &std::path::Path) -> BTreeMap<String, (DType, Vec<u64>, Vec<u8>)> {
    let everything = Ignore::default();
    let options = Options { eager: Some(true), verify: Some(true), ..Options::default() };
    let mut loaded = load::load(path, Selection::Except(&everything), options, Progress::SILENT).unwrap();
    (0..loaded.names.len())
        .map(|number| {
            let (dtype, shape) = (loaded.views[number].dtype, loaded.views[number].shape.to_vec());
            (loaded.names[number].clone(), (dtype, shape, loaded.to_bytes(number)))
        })
        .collect()
}

#[test]
fn every_common_type_goes_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let [first, there, back] =
        ["a.flashpack", "b.safetensors", "c.flashpack"].map(|name| folder.path().join(name));
    let common = DType::ALL.iter().filter(|dtype| dtype.to_safetensors().is_some());
    let mut tensors: Vec<_> = common.map(|&dtype| tensor(dtype.name(), dtype, &[3, 5])).collect();
    tensors.push(tensor("scalar", DType::Float64, &[]));
    tensors.push(tensor("empty", DType::Float32, &[4, 0]));
    pack(&first, &tensors, Order::LargestFirst, 128).unwrap();
    let out = convert::to_safetensors(&first, &there, Progress::SILENT).unwrap();
    assert_eq!((out.tensors, out.bytes), (tensors.len(), fs::metadata(&there).unwrap().len()));
    SafeTensors::deserialize(&fs::read(&there).unwrap()).unwrap();
    convert::from_safetensors(&request(std::slice::from_ref(&there), &back), Progress::SILENT).unwrap();
    assert_eq!(load_all(&back), load_all(&first));
}

#[test]
fn shards_metadata_and_filters() {
    let folder = tempfile::tempdir().unwrap();
    let data = [1_u8; 8];
    let view = |shape| TensorView::new(Dtype::F32, shape, &data).unwrap();
    let shards: Vec<PathBuf> =
        (1..3).map(|number| folder.path().join(format!("m-{number}.safetensors"))).collect();
    let metadata = |key: &str| Some([(key.to_owned(), "1".to_owned())].into());
    let save = |path: &PathBuf, tensors: Vec<(&str, TensorView<'_>)>, key| {
        fs::write(path, safetensors::serialize(tensors, metadata(key)).unwrap()).unwrap();
    };
    save(&shards[0], vec![("a.w", view(vec![2])), ("a.b", view(vec![1, 2]))], "one");
    save(&shards[1], vec![("b.w", view(vec![2, 1]))], "two");
    let made = folder.path().join("m.flashpack");
    let (names, prefixes) = (["a.b".to_owned()], ["z".to_owned()]);
    let ignore = Ignore { names: &names, prefixes: &prefixes, suffixes: &[] };
    convert::from_safetensors(&Request { ignore, ..request(&shards, &made) }, Progress::SILENT).unwrap();
    assert_eq!(load_all(&made).into_keys().collect::<Vec<_>>(), ["a.w", "b.w"]);
    let reader = Reader::open(&made).unwrap();
    assert_eq!(reader.index().metadata().keys().collect::<Vec<_>>(), ["one", "two"]);

    save(&shards[1], vec![("a.w", view(vec![2]))], "two");
    let error = convert::from_safetensors(&request(&shards, &made), Progress::SILENT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("duplicate name \"a.w\""), "{error}");
    assert_eq!(load_all(&made).len(), 2, "the old file is as it was");
}

#[test]
fn an_index_is_held_to_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("m.flashpack");
    for name in ["a", "b"] {
        let view = TensorView::new(Dtype::U8, vec![1], &[7]).unwrap();
        let bytes = safetensors::serialize([(name, view)], None).unwrap();
        fs::write(folder.path().join(format!("{name}.safetensors")), bytes).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    let convert = |weight_map: &str| {
        fs::write(&index, format!(r#"{{"weight_map": {weight_map}}}"#)).unwrap();
        let found = convert::find_weights(folder.path(), None)?;
        assert_eq!(found, index);
        let (sources, promised) = weight_files(&found)?;
        let request = Request { promised: promised.as_ref(), ..request(&sources, &made) };
        convert::from_safetensors(&request, Progress::SILENT)
    };
    convert(r#"{"a": "a.safetensors", "b": "b.safetensors"}"#).unwrap();
    assert_eq!(convert::tensor_names(&index).unwrap(), ["a", "b"]);
    assert_eq!(load_all(&made).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    for (weight_map, expected) in [
        (r#"{"a": "b.safetensors"}"#, "the first is \"a\" in b.safetensors"),
        (r#"{"a": "c.safetensors"}"#, "1 of 1 shards are missing"),
    ] {
        let error = convert(weight_map).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn casts_touch_floating_tensors_only() {
    let folder = tempfile::tempdir().unwrap();
    let [source, made] = ["m.safetensors", "m.flashpack"].map(|name| folder.path().join(name));
    let floats: Vec<u8> = [1.5_f32, 3.0e38, -0.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let ints: Vec<u8> = 2301_i64.to_le_bytes().to_vec();
    let views = [
        ("f", TensorView::new(Dtype::F32, vec![3], &floats).unwrap()),
        ("i", TensorView::new(Dtype::I64, vec![1], &ints).unwrap()),
    ];
    fs::write(&source, safetensors::serialize(views, None).unwrap()).unwrap();
    let sources = [source];
    let cast = Request { dtype: Some(DType::Float16), ..request(&sources, &made) };
    convert::from_safetensors(&cast, Progress::SILENT).unwrap();
    let loaded = load_all(&made);
    assert_eq!(loaded["f"].0, DType::Float16);
    assert_eq!(loaded["f"].2, [0x00, 0x3e, 0x00, 0x7c, 0x00, 0x80]);
    assert_eq!((loaded["i"].0, &loaded["i"].2), (DType::Int64, &ints));
    let fp8 = Request { dtype: Some(DType::Float8E4m3fn), ..request(&sources, &made) };
    assert_eq!(convert::from_safetensors(&fp8, Progress::SILENT).unwrap(), None, "only torch casts to it");
}

#[test]
fn damaged_sources_and_odd_destinations_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [source, made] = ["m.safetensors", "m.flashpack"].map(|name| folder.path().join(name));
    for bytes in [&b""[..], b"short", &[255; 64], &[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}', 0]] {
        fs::write(&source, bytes).unwrap();
        let sources = [source.clone()];
        let error = convert::from_safetensors(&request(&sources, &made), Progress::SILENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        assert!(!made.exists());
    }
    pack(&made, &[tensor("x", DType::Complex128, &[2])], Order::LargestFirst, 128).unwrap();
    let error = convert::to_safetensors(&made, &source, Progress::SILENT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("complex128") && error.to_string().contains("\"x\""), "{error}");
    pack(&made, &[tensor("__metadata__", DType::Uint8, &[2])], Order::LargestFirst, 128).unwrap();
    let error = convert::to_safetensors(&made, &source, Progress::SILENT).unwrap_err();
    assert!(error.to_string().contains("reserves"), "{error}");
    for (from, to) in [(&made, &made), (&source, &source)] {
        let sources = [from.clone()];
        assert!(convert::to_safetensors(from, to, Progress::SILENT).is_err());
        assert!(convert::from_safetensors(&request(&sources, to), Progress::SILENT).is_err());
    }
    Reader::open(&made).expect("nothing was written onto its own source");
}

#[test]
fn a_conversion_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let [source, made] = ["m.flashpack", "m.safetensors"].map(|name| folder.path().join(name));
    pack(&source, &[tensor("x", DType::Uint8, &[5])], Order::LargestFirst, 128).unwrap();
    let words = [0, 0, 1].map(std::sync::atomic::AtomicI64::new);
    let error = convert::to_safetensors(&source, &made, Progress::new(&words)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(!made.exists());
}

#[test]
fn a_header_whose_tensors_end_near_2_to_the_64_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let [source, made] = ["m.safetensors", "m.flashpack"].map(|name| folder.path().join(name));
    // Each tensor's bits fit 64-bit numbers; where the last one ends does, the bytes before the first added, not.
    let tensors = 8_u64;
    let bytes = u64::MAX / 8;
    let tensor = |number: u64| {
        let (start, end) = (number * bytes, (number + 1) * bytes);
        format!(r#""t{number}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..tensors).map(tensor).collect::<Vec<_>>().join(","));
    fs::write(&source, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let error = convert::from_safetensors(&request(&[source], &made), Progress::SILENT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    assert!(error.to_string().contains("but 0 follow the header"), "{error}");
}
