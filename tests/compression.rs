//! Files whose payload is compressed: what loads of them give, and what becomes of damaged ones.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Tensor, models, pack, pack_by, settings, tensor};
use flashpack::{
    ErrorKind, Progress, Reader, Result,
    codec::Level,
    convert::recode,
    explain::explain,
    format::{DType, checksum::Algorithm, footer, layout::Order},
    io::read::{ChunkReader, read_anywhere},
    load::{self, Options},
    plan::{Cut, Ignore, Memory, Place, ReadPlan, Selection, Verify},
    sign::{PrivateKey, PublicKey, sign},
    stats::Clock,
    verify::verify,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const LEVELS: [Level; 2] = [Level::Fast, Level::Small];

/// A tensor of weights: some exponents, noise in the other bits.
fn weights(name: &str, dtype: DType, shape: &[u64]) -> Tensor {
    let mut it = tensor(name, dtype, shape);
    let size = usize::try_from(dtype.size()).unwrap();
    let mut state = 1_u32;
    for (at, byte) in it.bytes.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 24) as u8;
        *byte = if at % size == size - 1 { 0x3c + (noise & 0x80) + (noise & 1) } else { noise };
    }
    it
}

fn compress(path: &Path, level: Option<Level>) -> Result<std::path::PathBuf> {
    let to = path.with_extension(format!("{level:?}"));
    recode(path, &to, level, Progress::SILENT).map(|_| to)
}

fn loaded(path: &Path, selection: Selection<'_>, eager: bool) -> Result<Vec<(String, Vec<u8>)>> {
    let options = Options { eager: Some(eager), ..Options::default() };
    let mut loaded = load::load(path, selection, options, Progress::SILENT)?;
    let names = loaded.names.clone();
    Ok(names.into_iter().enumerate().map(|(number, name)| (name, loaded.to_bytes(number))).collect())
}

fn everything(path: &Path, eager: bool) -> Result<Vec<(String, Vec<u8>)>> {
    loaded(path, Selection::Except(&Ignore::default()), eager)
}

fn model() -> Vec<Tensor> {
    vec![
        weights("a", DType::Bfloat16, &[600, 700]),
        weights("b", DType::Float32, &[100, 400]),
        weights("c", DType::Float8E5m2, &[3, 50_000]),
        tensor("d", DType::Int32, &[10_000]),
        weights("e", DType::Float16, &[]),
        tensor("f", DType::Bool, &[0, 4]),
    ]
}

#[test]
fn loads_of_any_kind_give_what_was_packed() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    pack(&plain, &model(), Order::LargestFirst, 128).unwrap();
    let names: Vec<String> = ["c", "e", "a"].map(str::to_owned).into();
    let cuts = [Cut { tensor: 2, dim: 1, range: 3..40 }, Cut { tensor: 0, dim: 0, range: 1..2 }];
    let payload = [5..9, 1_048_570..1_150_000, 1_180_000..1_180_001];
    for level in LEVELS {
        let packed = compress(&plain, Some(level)).unwrap();
        assert!(fs::metadata(&packed).unwrap().len() < fs::metadata(&plain).unwrap().len() * 19 / 20);
        for selection in [
            Selection::Except(&Ignore::default()),
            Selection::Names(&names),
            Selection::Slices { names: &names, cuts: &cuts },
            Selection::Blocks,
            Selection::Payload(&payload),
        ] {
            let expected = loaded(&plain, selection, true).unwrap();
            assert!(loaded(&packed, selection, false).unwrap() == expected, "{level:?} {selection:?}");
        }
        let report = verify(&packed, None, Progress::SILENT).unwrap();
        assert_eq!(report, verify(&plain, None, Progress::SILENT).unwrap());
    }
}

#[test]
fn files_go_there_and_back_with_the_same_root() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    for tensors in
        [model(), vec![weights("one", DType::Bfloat16, &[600_001])], vec![tensor("n", DType::Int8, &[0])]]
    {
        pack(&plain, &tensors, Order::LargestFirst, 128).unwrap();
        let root = |path: &Path| Reader::open(path).unwrap().index().checksums().unwrap().footer();
        for level in LEVELS {
            let packed = compress(&plain, Some(level)).unwrap();
            assert_eq!(root(&packed), root(&plain));
            let back = compress(&packed, None).unwrap();
            assert!(fs::read(&back).unwrap() == fs::read(&plain).unwrap());
        }
    }
}

#[test]
fn frames_are_never_read_as_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    pack(&plain, &model(), Order::LargestFirst, 128).unwrap();
    let reader = Reader::open(&compress(&plain, Some(Level::Fast)).unwrap()).unwrap();
    let everything = Ignore::default();
    let in_place = settings(Place::GivenHost, Verify::Never, 1, 8 << 20);
    let plan = ReadPlan::new(reader.index(), Selection::Except(&everything), in_place).unwrap();
    let mut memory: Vec<Vec<u8>> = plan.memory.iter().map(room).collect();
    let slices = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let (progress, clock) = (Progress::SILENT, Clock::default());
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock: &clock };
    let error = read_anywhere(&chunks, &plan.tasks, slices, plan.readers).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(memory.iter().flatten().all(|byte| *byte == 0), "nothing was read");
}

fn room(memory: &Memory) -> Vec<u8> {
    match *memory {
        Memory::Buffer(bytes) => vec![0; usize::try_from(bytes).unwrap()],
        Memory::Mapping => panic!("nothing is mapped in place"),
    }
}

#[test]
fn fixtures_give_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let (mut count, copy) = (0, folder.path().join("copy"));
    for fixture in fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()) {
        if fixture.extension().is_some_and(|it| it == "flashpack") {
            fs::copy(&fixture, &copy).unwrap();
            let packed = compress(&copy, Some(LEVELS[count % 2])).unwrap();
            assert!(
                everything(&packed, false).unwrap() == everything(&fixture, true).unwrap(),
                "{fixture:?}"
            );
            let back = compress(&packed, None).unwrap();
            assert!(everything(&back, true).unwrap() == everything(&fixture, true).unwrap(), "{fixture:?}");
            count += 1;
        }
    }
    assert_eq!(count, 46);
}

#[test]
fn files_of_each_codec_stay_readable() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: String| {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v5")).join(name + ".flashpack")
    };
    for width in [8, 16, 32] {
        let plain = file(format!("plain{width}"));
        for (codec, level) in [("fixed", Level::Fast), ("zstd", Level::Small)] {
            let packed = file(format!("{codec}{width}"));
            let index = Reader::open(&packed).unwrap();
            let codecs: Vec<_> = index.index().encoding().unwrap().codecs().into_keys().collect();
            assert_eq!(codecs, [format!("{codec}{width}")]);
            assert!(everything(&packed, true).unwrap() == everything(&plain, true).unwrap());
            let back = folder.path().join("back");
            recode(&packed, &back, None, Progress::SILENT).unwrap();
            assert!(fs::read(&back).unwrap() == fs::read(&plain).unwrap());
            recode(&plain, &back, Some(level), Progress::SILENT).unwrap();
            // zstd may find other frames in another version.
            assert!(level == Level::Small || fs::read(&back).unwrap() == fs::read(&packed).unwrap());
        }
    }
}

#[test]
fn damage_is_found_whether_or_not_it_decodes() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    pack(&plain, &[weights("a", DType::Bfloat16, &[600_000])], Order::Given, 128).unwrap();
    for level in LEVELS {
        let packed = compress(&plain, Some(level)).unwrap();
        let sound = fs::read(&packed).unwrap();
        let last = parts(&sound).0.len() - 1;
        // The width of the first block, or the length of zstd's first frame; then a mantissa of the second chunk.
        for (at, words) in [(0, "is damaged: its"), (last, "chunk 1 is damaged")] {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x55;
            fs::write(&packed, bytes).unwrap();
            let error = everything(&packed, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Checksum, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(verify(&packed, None, Progress::SILENT).unwrap_err().kind(), ErrorKind::Checksum);
            assert_eq!(compress(&packed, None).unwrap_err().kind(), ErrorKind::Checksum);
        }
    }
}

/// The parts of a file: what is before its footer, and that.
fn parts(bytes: &[u8]) -> (&[u8], String) {
    let length = bytes[bytes.len() - 16..bytes.len() - 8].try_into().unwrap();
    let footer = bytes.len() - 16 - usize::try_from(u64::from_le_bytes(length)).unwrap();
    (&bytes[..footer], String::from_utf8(bytes[footer..bytes.len() - 16].to_vec()).unwrap())
}

/// Words of an error, and the change of a footer that it is about.
type Edit<'a> = (&'a str, &'a dyn Fn(&mut Value));

#[test]
fn footers_that_no_frames_can_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    pack(&plain, &[weights("a", DType::Bfloat16, &[600_000])], Order::Given, 128).unwrap();
    let bytes = fs::read(compress(&plain, Some(Level::Fast)).unwrap()).unwrap();
    let (frames, footer) = parts(&bytes);
    let told = |edit: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_str(&footer).unwrap();
        edit(&mut json);
        let json = json.to_string();
        let path = folder.path().join("edited");
        fs::write(&path, [frames, json.as_bytes(), &footer::trailer(json.as_bytes())].concat()).unwrap();
        Reader::open(&path).map(drop)
    };
    told(&|_| ()).unwrap();
    let first = |json: &mut Value, value: Value| json["encoding"]["frames"][0]["lengths"][0] = value;
    let edits: [Edit<'_>; 14] = [
        ("key encoding is missing", &|json| json["encoding"] = Value::Null),
        ("expected an object", &|json| json["encoding"] = json!([1])),
        ("unknown field `offset`", &|json| json["encoding"]["offset"] = json!(1)),
        ("unknown field `key`", &|json| json["encoding"]["frames"][0]["key"] = json!(1)),
        ("encoding.chunk_bytes is 5000", &|json| json["encoding"]["chunk_bytes"] = json!(5000)),
        ("encoding.chunk_bytes is 134217728", &|json| json["encoding"]["chunk_bytes"] = json!(1 << 27)),
        ("is encoded by \"lzma\", which this version", &|json| {
            json["encoding"]["frames"][0]["codec"] = json!("lzma");
        }),
        ("a frame 0 of 1048577 bytes by fixed16", &|json| first(json, json!((1 << 20) + 1))),
        ("a frame 0 of 262143 bytes by fixed16", &|json| first(json, json!((1 << 18) - 1))),
        ("a frame 0 of 700000 bytes by raw, but its chunk has 1048576", &|json| {
            json["encoding"]["frames"][0]["codec"] = json!("raw");
            first(json, json!(700_000));
        }),
        ("invalid value", &|json| first(json, json!(1_u64 << 32))),
        ("frames reach past the payload", &|json| first(json, json!(1 << 20))),
        ("has 0 frames, but a payload of 1200000 bytes has 2 chunks", &|json| {
            json["encoding"]["frames"] = json!([]);
        }),
        ("a frame 2 of 0 bytes by fixed16, but its chunk has 0", &|json| {
            json["encoding"]["frames"][0]["lengths"].as_array_mut().unwrap().push(json!(0));
        }),
    ];
    for (words, edit) in edits {
        let error = told(edit).unwrap_err();
        assert!(error.kind() == ErrorKind::Format && error.to_string().contains(words), "{words}: {error}");
    }
}

#[test]
fn signatures_are_of_the_tensors_however_they_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    let keys = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys"));
    let key = |name: &str| keys.join(name);
    let public = PublicKey::read(&key("public.pem")).unwrap();
    let tensors = [weights("a", DType::Bfloat16, &[600_000])];
    pack_by(Algorithm::Blake3, &plain, &tensors, Order::Given, 128).unwrap();
    let packed = compress(&plain, Some(Level::Fast)).unwrap();
    let frames = parts(&fs::read(&packed).unwrap()).0.to_vec();
    sign(&packed, &PrivateKey::read(&key("private.pem")).unwrap(), Progress::SILENT).unwrap();
    assert!(parts(&fs::read(&packed).unwrap()).0 == frames);
    let back = compress(&packed, None).unwrap();
    for signed in [&packed, &back] {
        assert_eq!(verify(signed, Some(&public), Progress::SILENT).unwrap().signer, Some(public));
    }
    let mut bytes = fs::read(&packed).unwrap();
    bytes[900_000 / 2] ^= 1;
    fs::write(&packed, &bytes).unwrap();
    let damaged = sign(&packed, &PrivateKey::read(&key("private.pem")).unwrap(), Progress::SILENT);
    assert_eq!(damaged.unwrap_err().kind(), ErrorKind::Checksum);
    assert!(fs::read(&packed).unwrap() == bytes);
}

#[test]
fn shards_may_be_stored_in_different_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, other) = (folder.path().join("plain"), folder.path().join("other"));
    pack(&plain, &[weights("a", DType::Bfloat16, &[600_000])], Order::Given, 128).unwrap();
    pack(&other, &[weights("b", DType::Float16, &[300, 2000])], Order::Given, 128).unwrap();
    let packed = compress(&plain, Some(Level::Small)).unwrap();
    let list = |one: &Path| PathBuf::from(format!("{}\0{}", one.display(), other.display()));
    let expected = everything(&list(&plain), true).unwrap();
    assert!(everything(&list(&packed), false).unwrap() == expected);
    let told =
        explain(&list(&packed), "cpu", Selection::Except(&Ignore::default()), Options::default()).unwrap();
    assert_eq!((told.mode, &*told.codecs), ("read", &["zstd16"][..]));
    assert!(told.stored_bytes < told.payload_bytes);
    assert!(told.to_string().contains(", by zstd16: decoded as it is read, and never mapped"), "{told}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn models_of_all_types_come_back(tensors in models(), align in prop::sample::select(vec![0_u64, 128, 4096])) {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        pack(&plain, &tensors, Order::LargestFirst, align).unwrap();
        for level in LEVELS {
            let packed = compress(&plain, Some(level)).unwrap();
            prop_assert!(everything(&packed, true).unwrap() == everything(&plain, true).unwrap());
            let back = compress(&packed, None).unwrap();
            prop_assert!(fs::read(back).unwrap() == fs::read(&plain).unwrap());
        }
    }
}
