//! What several tests need: models, files of them, and their bytes back.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]
#![allow(dead_code, reason = "each test program uses its share")]
#![allow(unreachable_pub, reason = "each test program has a copy of its own")]

use std::{collections::BTreeMap, path::Path};

use flashpack::{
    ErrorKind, Progress, Reader, Result,
    format::{
        DEFAULT_ALIGN_BYTES, DType,
        checksum::Algorithm,
        layout::{Order, TensorSpec},
    },
    io::{self, Source, read::ChunkReader},
    pack::Packer,
    plan::{Memory, Place, ReadPlan, Readers, Selection, Settings, Verify},
    stats::Clock,
};
use proptest::prelude::*;

/// A tensor and its elements.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub spec: TensorSpec,
    pub bytes: Vec<u8>,
}

/// A tensor whose bytes follow from its name and size.
pub fn tensor(name: &str, dtype: DType, shape: &[u64]) -> Tensor {
    let bytes = shape.iter().product::<u64>() * dtype.size();
    let seed = name.bytes().map(u64::from).sum::<u64>();
    let bytes = (0..bytes).map(|at| ((at * 31 + seed * 17) % 251) as u8).collect();
    Tensor { spec: TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), tied_to: None }, bytes }
}

pub fn pack(path: &Path, tensors: &[Tensor], order: Order, align_bytes: u64) -> Result<u64> {
    pack_by(Algorithm::default(), path, tensors, order, align_bytes)
}

pub fn pack_by(
    algorithm: Algorithm,
    path: &Path,
    tensors: &[Tensor],
    order: Order,
    align_bytes: u64,
) -> Result<u64> {
    let specs: Vec<_> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let packer = Packer::create(path, &specs, order, align_bytes, BTreeMap::new(), Progress::SILENT)?;
    let mut packer = packer.digested_by(algorithm);
    let writes: Vec<_> = packer.writes().iter().map(|write| write.tensor).collect();
    for number in writes {
        packer.write(&tensors[number].bytes)?;
    }
    packer.finish()
}

/// The bytes of a file with `tensors`.
pub fn packed(tensors: &[Tensor], align_bytes: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    pack(&path, tensors, Order::LargestFirst, align_bytes).unwrap();
    std::fs::read(path).unwrap()
}

pub fn packed_by_default(tensors: &[Tensor]) -> Vec<u8> {
    packed(tensors, DEFAULT_ALIGN_BYTES)
}

pub fn settings(place: Place, verify: Verify, threads: usize, read_chunk_bytes: u64) -> Settings {
    Settings {
        place,
        verify,
        readers: Readers::fixed(threads),
        read_chunk_bytes,
        direct: false,
        bridged_bytes: 0,
    }
}

/// Carries out `plan` with plain vectors for memory; a mapping stays empty.
pub fn execute<S: Source>(reader: &Reader<S>, plan: &ReadPlan) -> Result<Vec<Vec<u8>>> {
    let mut memory: Vec<Vec<u8>> = plan
        .memory
        .iter()
        .map(|memory| match *memory {
            Memory::Mapping => Vec::new(),
            Memory::Buffer(bytes) => vec![0xAA; bytes as usize],
        })
        .collect();
    let slices = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let (progress, clock) = (Progress::SILENT, Clock::default());
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock: &clock };
    io::read::read(&chunks, &plan.tasks, slices, plan.readers)?;
    Ok(memory)
}

/// What every source must do, whose bytes are `expected`.
pub fn check_source(source: &dyn Source, expected: &[u8]) {
    let len = expected.len();
    assert_eq!((source.len(), source.is_empty()), (len as u64, len == 0));
    for (offset, length) in [(0, 1), (0, len), (4095, 2), (len / 2, len / 2), (len - 1, 1), (len, 0)] {
        let mut read = vec![0xAA; length];
        source.read_exact_at(&mut read, offset as u64).unwrap();
        assert!(read == expected[offset..offset + length], "{length} bytes at {offset}");
    }
    for step in [4096, 1_000_003] {
        let mut read = Vec::new();
        let mut piece = vec![0xAA; step];
        while let count @ 1.. = source.read_at(&mut piece, read.len() as u64).unwrap() {
            read.extend_from_slice(&piece[..count]);
        }
        assert!(read == expected, "in steps of {step}");
    }
    for past in [0, 1, 4095, 1 << 20] {
        assert_eq!(source.read_at(&mut [0xAA; 9], (len + past) as u64).unwrap(), 0, "{past} past the end");
    }
    let error = source.read_exact_at(&mut [0; 2], len as u64 - 1).unwrap_err();
    let words = format!("ends at byte {len}, 1 bytes early: truncated");
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains(&words), "{error}");
}

/// Loads by name from any source, eagerly: name and bytes of each tensor.
pub fn load<S: Source>(
    reader: &Reader<S>,
    selection: Selection<'_>,
    settings: Settings,
) -> Result<Vec<(String, Vec<u8>)>> {
    let plan = ReadPlan::new(reader.index(), selection, settings)?;
    let memory = execute(reader, &plan)?;
    let bytes = |view: &flashpack::plan::View| {
        let bytes = view.shape.iter().product::<u64>() * view.dtype.size();
        let start = view.offset as usize;
        memory[view.memory][start..start + bytes as usize].to_vec()
    };
    let name = |view: &flashpack::plan::View| reader.index().records()[view.source].name().to_owned();
    Ok(plan.views.iter().map(|view| (name(view), bytes(view))).collect())
}

/// Models of up to a dozen small tensors of any types and shapes, some tied to earlier ones.
pub fn models() -> impl Strategy<Value = Vec<Tensor>> {
    let shape = prop::collection::vec(0_u64..9, 0..4);
    let one = (shape, 0..DType::ALL.len(), prop::option::weighted(0.2, any::<prop::sample::Index>()));
    prop::collection::vec(one, 1..12).prop_map(|raw| {
        let mut tensors: Vec<Tensor> = Vec::new();
        for (number, (shape, dtype, tie)) in raw.into_iter().enumerate() {
            let name = format!("layer.{number}");
            let tie = tie.filter(|_| number > 0).map(|tie| tie.index(number));
            tensors.push(match tie {
                Some(root) if tensors[root].spec.tied_to.is_none() && !tensors[root].bytes.is_empty() => {
                    let mut tied = tensors[root].clone();
                    tied.spec.name = name;
                    tied.spec.tied_to = Some(root);
                    tied
                }
                _ => tensor(&name, DType::ALL[dtype], &shape),
            });
        }
        tensors
    })
}
