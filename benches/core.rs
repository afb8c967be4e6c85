//! The Rust cores on their own: parsing a footer, planning, digests, reading into memory.

use std::{collections::BTreeMap, hint::black_box};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flashpack::{
    Progress,
    codec::{Element, Level},
    format::{
        DType, Index,
        checksum::{Algorithm, CHUNK_BYTES, Chunker, Digest},
        footer,
        layout::{Layout, Order, TensorSpec},
    },
    load::{self, Options},
    pack::Packer,
    plan::{Ignore, Place, ReadPlan, Readers, Selection, Settings, Verify},
};

fn specs(count: usize, elems: u64) -> Vec<TensorSpec> {
    let spec = |number| TensorSpec {
        name: format!("model.layers.{number}.self_attn.q_proj.weight"),
        dtype: DType::Bfloat16,
        shape: vec![elems / 64, 64],
        tied_to: None,
    };
    (0..count).map(spec).collect()
}

fn index(count: usize) -> Index {
    let layout = Layout::new(&specs(count, 4096), Order::LargestFirst, 128, BTreeMap::new()).unwrap();
    let chunks = layout.payload_bytes().div_ceil(CHUNK_BYTES);
    layout.into_index(Algorithm::Xxh3, (0..chunks).map(Digest::Xxh3).collect())
}

fn footers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("footer");
    for count in [100, 5000, 100_000] {
        let index = index(count);
        let json = footer::render(&index);
        let parsed = footer::parse(json.as_bytes(), index.payload_bytes()).unwrap();
        assert_eq!(parsed, index);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::new("parse and validate", count), &json, |bencher, json| {
            bencher.iter(|| footer::parse(black_box(json.as_bytes()), index.payload_bytes()).unwrap());
        });
    }
}

fn plans(criterion: &mut Criterion) {
    let everything = Ignore::default();
    let large = index(100_000);
    let json = footer::render(&large);
    let settings = |place| {
        let readers = Readers::fixed(2);
        Settings {
            place,
            verify: Verify::Whole,
            readers,
            read_chunk_bytes: 8 << 20,
            direct: false,
            bridged_bytes: 0,
        }
    };
    criterion.bench_function("footer and plan/100000 tensors", |bencher| {
        bencher.iter(|| {
            let index = footer::parse(black_box(json.as_bytes()), large.payload_bytes()).unwrap();
            ReadPlan::new(&index, Selection::Except(&everything), settings(Place::Host)).unwrap()
        });
    });
    let index = index(5000);
    for (name, place) in [("lazy", Place::Mapping), ("eager", Place::Host), ("in place", Place::GivenHost)] {
        let settings = settings(place);
        criterion.bench_function(&format!("plan/5000 tensors, {name}"), |bencher| {
            bencher
                .iter(|| ReadPlan::new(black_box(&index), Selection::Except(&everything), settings).unwrap());
        });
    }
}

fn digests(criterion: &mut Criterion) {
    let bytes = vec![7_u8; 64 << 20];
    let mut group = criterion.benchmark_group("digest");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for algorithm in Algorithm::ALL {
        group.bench_function(format!("{}, 64 MiB", algorithm.name()), |bencher| {
            bencher.iter(|| {
                let mut chunker = Chunker::new(algorithm, CHUNK_BYTES);
                chunker.update(black_box(&bytes));
                chunker.finish()
            });
        });
    }
}

/// A chunk of normally distributed bfloat16.
fn weights() -> Vec<u8> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 65536.0
    };
    let normal = |_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    (0..1 << 19).map(normal).flat_map(|it| half::bf16::from_f32(it / 50.0).to_le_bytes()).collect()
}

fn codecs(criterion: &mut Criterion) {
    let chunk = weights();
    let mut group = criterion.benchmark_group("a chunk of bfloat16");
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    for level in [Level::Fast, Level::Small] {
        let (codec, frame) = level.encode(Some(Element::Two), &chunk);
        let mut decoded = vec![0; chunk.len()];
        group.bench_function(format!("encode {level:?}, {} bytes", frame.len()), |bencher| {
            bencher.iter(|| level.encode(Some(Element::Two), black_box(&chunk)));
        });
        group.bench_function(format!("decode {level:?}"), |bencher| {
            bencher.iter(|| codec.decode(black_box(&frame), &mut decoded).unwrap());
        });
        assert_eq!(decoded, chunk);
    }
}

fn loads(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    let specs = specs(64, 4 << 20);
    let bytes = vec![3_u8; 8 << 20];
    let mut packer =
        Packer::create(&path, &specs, Order::Given, 128, BTreeMap::new(), Progress::SILENT).unwrap();
    for _ in &specs {
        packer.write(&bytes).unwrap();
    }
    packer.finish().unwrap();
    let mut group = criterion.benchmark_group("load 512 MiB, hot");
    group.throughput(Throughput::Bytes(64 * (8 << 20))).sample_size(10);
    for (name, verify) in [("eager", false), ("eager, verified", true)] {
        let options = Options { eager: Some(true), verify: Some(verify), ..Options::default() };
        let everything = Ignore::default();
        let load = || load::load(&path, Selection::Except(&everything), options, Progress::SILENT).unwrap();
        assert_eq!(load().to_bytes(63), bytes);
        group.bench_function(name, |bencher| bencher.iter_with_large_drop(load));
    }
}

criterion_group!(benches, footers, plans, digests, codecs, loads);
criterion_main!(benches);
