//! What several tests need: models, files of them, and their bytes back.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]
#![allow(dead_code, reason = "each test program uses its share")]

use std::{collections::BTreeMap, num::NonZeroUsize, path::Path};

use flashpack::{
    Progress, Reader, Result,
    format::{
        DEFAULT_ALIGN_BYTES, DType,
        layout::{Order, TensorSpec},
    },
    io::{self, Source, read::ChunkReader},
    pack::Packer,
    plan::{Memory, Mode, ReadPlan, Selection, Settings, Verify},
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
    let specs: Vec<_> = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
    let mut packer = Packer::create(path, &specs, order, align_bytes, BTreeMap::new(), Progress::SILENT)?;
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

pub fn settings(mode: Mode, verify: Verify, threads: usize, read_chunk_bytes: u64) -> Settings {
    Settings { mode, verify, threads: NonZeroUsize::new(threads).unwrap(), read_chunk_bytes, direct: false }
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
    io::read::read(&chunks, &plan.tasks, slices, plan.threads)?;
    Ok(memory)
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
