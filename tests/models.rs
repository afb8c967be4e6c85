//! Models in other forms than one FlashPack file: safetensors as they are, and several files as one.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Tensor, models, pack, pack_by, settings, tensor};
use flashpack::{
    Error, ErrorKind, Progress, Reader,
    format::{DType, Index, checksum::Algorithm, layout::Order},
    io::memory::MemorySource,
    load::{self, Options, Place},
    model::{Model, SEPARATOR},
    plan::{Ignore, Memory, ReadPlan, Selection, Verify},
    stats::Report,
    verify::verify,
};
use proptest::prelude::*;
use safetensors::{SafeTensors, tensor::TensorView};

type Contents = BTreeMap<String, (DType, Vec<u64>, Vec<u8>)>;

fn contents(tensors: &[Tensor]) -> Contents {
    let entry = |tensor: &Tensor| {
        let spec = &tensor.spec;
        (spec.name.clone(), (spec.dtype, spec.shape.clone(), tensor.bytes.clone()))
    };
    tensors.iter().map(entry).collect()
}

fn loaded(path: &Path, eager: bool, verify: Option<bool>) -> Result<Contents, Error> {
    let everything = Ignore::default();
    let options = Options { eager: Some(eager), verify, place: Place::Host };
    let mut loaded = load::load(path, Selection::Except(&everything), options, Progress::SILENT)?;
    let count = loaded.names.len();
    let entry = |number: usize| {
        let (dtype, shape) = (loaded.views[number].dtype, loaded.views[number].shape.to_vec());
        (loaded.names[number].clone(), (dtype, shape, loaded.to_bytes(number)))
    };
    Ok((0..count).map(entry).collect())
}

/// Tensors of every type that safetensors has, among them scalars, empty ones and odd sizes.
fn every_type() -> Vec<Tensor> {
    let common = DType::ALL.iter().filter(|dtype| dtype.to_safetensors().is_some());
    let mut tensors: Vec<_> = common.map(|&dtype| tensor(dtype.name(), dtype, &[3, 5])).collect();
    tensors.push(tensor("scalar", DType::Float64, &[]));
    tensors.push(tensor("empty", DType::Float32, &[4, 0]));
    tensors
}

/// Writes `tensors` in their order, the header padded by `padding` spaces: safetensors' own writer sorts and aligns.
fn write_safetensors(path: &Path, tensors: &[Tensor], padding: usize) {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut payload = Vec::new();
    for Tensor { spec, bytes } in tensors {
        let mut shape = spec.shape.clone();
        if spec.dtype == DType::Float4E2m1fnX2 {
            *shape.last_mut().unwrap() *= 2;
        }
        let start = payload.len();
        payload.extend_from_slice(bytes);
        let offsets = [start, payload.len()];
        let dtype = spec.dtype.to_safetensors().unwrap();
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        entries.insert(spec.name.clone(), entry);
    }
    let mut json = serde_json::to_vec(&entries).unwrap();
    json.resize(json.len() + padding, b' ');
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.append(&mut json);
    file.append(&mut payload);
    SafeTensors::deserialize(&file).expect("safetensors' own reader takes it");
    fs::write(path, file).unwrap();
}

#[test]
fn safetensors_of_every_type_and_alignment_load_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no suffix that tells");
    let tensors = every_type();
    for padding in 0..9 {
        write_safetensors(&path, &tensors, padding);
        for eager in [false, true] {
            assert_eq!(loaded(&path, eager, None).unwrap(), contents(&tensors), "{padding}");
        }
    }
    let model = Model::open(&path).unwrap();
    assert_eq!(model.index.metadata()["format"], "pt");
    let error = loaded(&path, true, Some(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("holds no checksums"), "{error}");
}

#[test]
fn safetensors_of_its_own_writer_are_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let data = [7_u8; 24];
    let views = [("a", vec![3]), ("b", vec![1, 3])]
        .map(|(name, shape)| (name, TensorView::new(safetensors::Dtype::F64, shape, &data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let index = Model::open(&path).unwrap().index;
    let everything = Ignore::default();
    let lazy = settings(Place::Mapping, Verify::Never, 1, 4096);
    let plan = ReadPlan::new(&index, Selection::Except(&everything), lazy).unwrap();
    assert_eq!(plan.read_bytes(), 0);
}

#[test]
fn damaged_safetensors_are_refused_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.bin");
    write_safetensors(&path, &every_type(), 3);
    let whole = fs::read(&path).unwrap();
    for bytes in [&whole[..whole.len() - 1], &[&whole[..], b"!"].concat()] {
        fs::write(&path, bytes).unwrap();
        let error = loaded(&path, true, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(error.to_string().contains("not a sound safetensors file: its tensors take"), "{error}");
    }
    let named = folder.path().join("m.safetensors");
    for bytes in [&b""[..], b"short", &[255; 64]] {
        fs::write(&named, bytes).unwrap();
        let error = loaded(&named, true, None).unwrap_err().to_string();
        assert!(error.contains("not a sound safetensors file"), "{error}");
        fs::write(&path, bytes).unwrap();
        let error = loaded(&path, true, None).unwrap_err().to_string();
        assert!(!error.contains("safetensors"), "{error}");
    }
}

/// Packs each shard, and writes their index; its path.
fn write_set(folder: &Path, shards: &[(&str, &[Tensor])]) -> std::path::PathBuf {
    let mut map = serde_json::Map::new();
    for (name, tensors) in shards {
        let path = folder.join(name);
        if path.extension().is_some_and(|suffix| suffix == "safetensors") {
            write_safetensors(&path, tensors, 0);
        } else {
            pack(&path, tensors, Order::Given, 128).unwrap();
        }
        map.extend(tensors.iter().map(|tensor| (tensor.spec.name.clone(), (*name).into())));
    }
    let path = folder.join("model.index.json");
    fs::write(&path, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    path
}

fn list(folder: &Path, names: &[&str]) -> std::path::PathBuf {
    let paths: Vec<_> = names.iter().map(|name| folder.join(name).to_str().unwrap().to_owned()).collect();
    paths.join(&SEPARATOR.to_string()).into()
}

#[test]
fn shards_load_as_one_and_damage_is_found_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    // Over a chunk with a digest each, so that no shard begins where the one before it ends.
    let tensors: Vec<_> =
        (0..4_u64).map(|number| tensor(&format!("t{number}"), DType::Float32, &[300_000 + number])).collect();
    let set =
        [("1.flashpack", &tensors[..1]), ("2.flashpack", &tensors[1..3]), ("3.flashpack", &tensors[3..])];
    let index = write_set(folder.path(), &set);
    let files = list(folder.path(), &["1.flashpack", "2.flashpack", "3.flashpack"]);
    for path in [&index, &files] {
        for (eager, verified) in [(false, None), (false, Some(true)), (true, None), (true, Some(false))] {
            assert_eq!(loaded(path, eager, verified).unwrap(), contents(&tensors));
        }
    }
    let payload: u64 = (1..4)
        .map(|number| folder.path().join(format!("{number}.flashpack")))
        .map(|path| Reader::open(&path).unwrap().index().payload_bytes())
        .sum();
    let report = verify(&index, None, Progress::SILENT).unwrap();
    assert_eq!((report.payload_bytes, report.verified_bytes), (payload, payload));

    let damaged = folder.path().join("3.flashpack");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[(1 << 20) + 5] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    for error in [
        loaded(&index, true, None).unwrap_err(),
        loaded(&files, false, Some(true)).unwrap_err(),
        verify(&index, None, Progress::SILENT).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Checksum);
        let expected =
            format!("{}: chunk 1 is damaged, bytes 1048576..1200012 (of [\"t3\"])", damaged.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[test]
fn files_without_digests_and_safetensors_join_too() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (every_type(), [tensor("more", DType::Int64, &[700])]);
    let index = write_set(folder.path(), &[("1.safetensors", &one), ("2.flashpack", &other)]);
    let mut expected = contents(&one);
    expected.extend(contents(&other));
    for eager in [false, true] {
        assert_eq!(loaded(&index, eager, None).unwrap(), expected);
    }
    let error = loaded(&index, true, Some(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("file 1 of 2 holds no checksums"), "{error}");
    let report = verify(&index, None, Progress::SILENT).unwrap();
    assert_eq!((report.verified_bytes, report.algorithm.as_deref()), (5600, Some("xxh3_64")));
    assert!(report.payload_bytes > 5600);
}

/// Files with the digests of both kinds and without any: [`Verify::Whole`] checks each by its own.
#[test]
fn each_file_is_verified_by_its_own_digests() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = ["a", "b", "c"].map(|name| tensor(name, DType::Uint8, &[3 << 20]));
    let names = ["a.flashpack", "b.flashpack", "c.safetensors"];
    let paths = names.map(|name| folder.path().join(name));
    pack(&paths[0], &tensors[..1], Order::Given, 128).unwrap();
    pack_by(Algorithm::Blake3, &paths[1], &tensors[1..2], Order::Given, 128).unwrap();
    write_safetensors(&paths[2], &tensors[2..], 0);
    let load_all = |order: [usize; 3]| {
        let loaded = loaded(&list(folder.path(), &order.map(|number| names[number])), true, None)?;
        Ok::<_, Error>((loaded, Report::last().unwrap()))
    };
    let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0]];
    for order in orders {
        let (loaded, report) = load_all(order).unwrap();
        assert!(loaded == contents(&tensors));
        assert_eq!((report.bytes, report.verified_bytes), (9 << 20, 6 << 20));
    }
    for damaged in &paths[..2] {
        let mut bytes = fs::read(damaged).unwrap();
        bytes[(2 << 20) + 1000] ^= 1;
        fs::write(damaged, &bytes).unwrap();
        for order in orders {
            let error = load_all(order).unwrap_err();
            let words = format!("{}: chunk 2 is damaged, bytes 2097152..3145728", damaged.display());
            assert!(error.kind() == ErrorKind::Checksum && error.to_string().starts_with(&words), "{error}");
        }
        bytes[(2 << 20) + 1000] ^= 1;
        fs::write(damaged, &bytes).unwrap();
    }
}

/// The checksums in the description of several files tell which algorithms there are and what they leave out.
#[test]
fn files_of_several_kinds_describe_their_checksums() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = ([tensor("a", DType::Uint8, &[5000])], [tensor("b", DType::Uint8, &[70])]);
    pack(&folder.path().join("1.flashpack"), &one, Order::Given, 128).unwrap();
    pack_by(Algorithm::Blake3, &folder.path().join("2.flashpack"), &other, Order::Given, 128).unwrap();
    write_safetensors(&folder.path().join("3.safetensors"), &[tensor("c", DType::Uint8, &[9])], 0);
    let told = |names: &[&str]| {
        let footer = Model::open(&list(folder.path(), names)).unwrap().footer();
        serde_json::from_str::<serde_json::Value>(&footer).unwrap()["checksums"].clone()
    };
    let both = told(&["1.flashpack", "2.flashpack"]);
    assert_eq!((&both["algorithm"], both.get("unverified_bytes")), (&"blake3 and xxh3_64".into(), None));
    let partly = told(&["1.flashpack", "3.safetensors"]);
    let bytes = fs::metadata(folder.path().join("3.safetensors")).unwrap().len();
    assert_eq!((&partly["algorithm"], &partly["unverified_bytes"]), (&"xxh3_64".into(), &bytes.into()));
}

#[cfg(target_os = "linux")]
#[test]
fn more_files_load_than_may_be_open_at_a_time() {
    use flashpack::io::{Source as _, file::MOST_DESCRIPTORS};
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..MOST_DESCRIPTORS + 9)
        .map(|number| tensor(&format!("t{number}"), DType::Float32, &[100 + number]))
        .collect();
    let names: Vec<_> = (0..tensors.len()).map(|number| format!("{number}.flashpack")).collect();
    let shards: Vec<_> = names.iter().map(String::as_str).zip(tensors.chunks(1)).collect();
    let index = write_set(folder.path(), &shards);
    let model = Model::open(&index).unwrap();
    let root = folder.path().canonicalize().unwrap();
    let open =
        fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert!(open.filter(|path| path.starts_with(&root)).count() as u64 <= MOST_DESCRIPTORS);
    for eager in [false, true] {
        assert_eq!(loaded(&index, eager, None).unwrap(), contents(&tensors));
    }
    fs::rename(folder.path().join("1.flashpack"), folder.path().join("0.flashpack")).unwrap();
    let mut bytes = [0; 8];
    let error = model.files.read_exact_at(&mut bytes, 0).unwrap_err();
    assert!(error.to_string().contains("was changed or replaced after it was opened"), "{error}");
}

#[test]
fn sets_that_do_not_fit_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = ([tensor("a", DType::Int8, &[3])], [tensor("b", DType::Int8, &[3])]);
    let index = write_set(folder.path(), &[("1.flashpack", &one), ("2.flashpack", &other)]);
    let refused = |path: &Path, kind: ErrorKind| {
        let error = loaded(path, false, None).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        error.to_string()
    };
    pack(&folder.path().join("2.flashpack"), &one, Order::Given, 128).unwrap();
    let message = refused(&index, ErrorKind::Format);
    assert!(message.contains("1 tensors of the index are missing") && message.contains("\"b\""), "{message}");
    let message = refused(&list(folder.path(), &["1.flashpack", "2.flashpack"]), ErrorKind::Format);
    assert!(message.contains("duplicate name \"a\"") && message.contains("2.flashpack"), "{message}");
    fs::remove_file(folder.path().join("2.flashpack")).unwrap();
    let message = refused(&index, ErrorKind::Format);
    assert!(message.contains("1 of 2 shards are missing: [\"2.flashpack\"]"), "{message}");
    refused(&list(folder.path(), &["1.flashpack", "2.flashpack"]), ErrorKind::Io);
    let message = refused(&list(folder.path(), &["1.flashpack", "model.index.json"]), ErrorKind::Format);
    assert!(message.contains("is an index of shards"), "{message}");
    let outside = serde_json::json!({"weight_map": {"a": "../1.flashpack"}});
    fs::write(&index, outside.to_string()).unwrap();
    assert!(refused(&index, ErrorKind::Format).contains("\"../1.flashpack\" is not a plain file name"));
}

fn parsed(tensors: &[Tensor]) -> Index {
    Reader::new(MemorySource::new(common::packed_by_default(tensors))).unwrap().index().clone()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn joined_files_keep_their_bytes_apart(
        mut files in prop::collection::vec(models(), 2..5),
        page_bytes in prop::sample::select(vec![4_u64 << 10, 64 << 10, 4 << 20]),
    ) {
        for (number, file) in files.iter_mut().enumerate() {
            for tensor in file {
                tensor.spec.name.insert_str(0, &format!("{number}."));
            }
        }
        let indices: Vec<Index> = files.iter().map(|file| parsed(file)).collect();
        let labelled = indices.iter().cloned().map(|index| (String::new(), index)).collect();
        let joined = Index::join(labelled, page_bytes).unwrap();
        let (mut records, mut end) = (joined.records().iter(), 0);
        for (index, joined_part) in indices.iter().zip(joined.parts()) {
            let part = joined_part.range();
            prop_assert!(part.start >= end && part.start.is_multiple_of(page_bytes.max(1 << 20)));
            prop_assert_eq!(part.end - part.start, index.payload_bytes());
            end = part.end;
            for own in index.records() {
                let record = records.next().unwrap();
                prop_assert_eq!((record.name(), record.shape()), (own.name(), own.shape()));
                prop_assert_eq!(joined.find(own.name()).map(|found| &joined.records()[found]), Some(record));
                let (file, within) = (joined.file_range(record), index.file_range(own));
                prop_assert!(within.is_empty() || file == (part.start + within.start..part.start + within.end));
            }
            prop_assert_eq!(joined_part.checksums(), index.checksums());
            if !part.is_empty() {
                prop_assert_eq!(joined.part_at(part.start), joined_part);
                prop_assert_eq!(joined.part_at(part.end - 1), joined_part);
            }
        }
        prop_assert_eq!(joined.payload_bytes(), end);
    }

    #[test]
    fn tensors_on_a_device_are_aligned(tensors in models(), padding in 0_usize..20) {
        let tensors: Vec<_> = tensors
            .into_iter()
            .filter(|tensor| tensor.spec.dtype.to_safetensors().is_some() && !tensor.spec.shape.is_empty())
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write_safetensors(&path, &tensors, padding);
        let options = Options { place: Place::Device, ..Options::default() };
        let everything = Ignore::default();
        let prepared = load::prepare(&Model::open(&path).unwrap(), Selection::Except(&everything), options).unwrap();
        let room = |memory: &Memory| match *memory {
            Memory::Buffer(bytes) => vec![0xAA; bytes as usize],
            Memory::Mapping => panic!("nothing is mapped to a device"),
        };
        let mut memory: Vec<Vec<u8>> = prepared.plan().memory.iter().map(room).collect();
        prepared.fill(memory.iter_mut().map(Vec::as_mut_slice).collect(), Progress::SILENT).unwrap();
        for (view, name) in prepared.plan().views.iter().zip(prepared.names()) {
            let wanted = tensors.iter().find(|tensor| tensor.spec.name == *name).unwrap();
            prop_assert!(view.offset.is_multiple_of(16));
            let start = view.offset as usize;
            prop_assert_eq!(&memory[view.memory][start..start + wanted.bytes.len()], &wanted.bytes[..]);
        }
    }
}

#[test]
fn a_file_without_tensors_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    fs::write(&path, [&2_u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    assert_eq!(loaded(&path, true, None).unwrap(), Contents::new());
    assert_eq!(loaded(&path, false, None).unwrap(), Contents::new());
}
