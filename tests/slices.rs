//! Slices against the whole tensors cut by hand, and what plans of them read.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]

mod common;

use std::{collections::BTreeMap, ops::Range};

use common::{Tensor, execute, packed, settings, tensor};
use flashpack::{
    ErrorKind, Reader,
    format::{
        DType, Index,
        checksum::Algorithm,
        layout::{Layout, Order, TensorSpec},
    },
    io::memory::MemorySource,
    plan::{Cut, Memory, Place, ReadPlan, Selection, Settings, Target, Verify, View},
};
use proptest::prelude::*;

/// A tensor of a model, and which part of each dimension is wanted.
type Sliced = (Tensor, Vec<Range<u64>>);

/// Rows whose gaps are both narrower and wider than what is joined, and tensors that are tied to earlier ones.
fn sliced_models() -> impl Strategy<Value = Vec<Sliced>> {
    let outer = prop::collection::vec(1_u64..5, 0..3);
    let inner = prop::sample::select(vec![1_u64, 7, 700, 9000]);
    let shape = (outer, inner).prop_map(|(mut shape, inner)| {
        shape.push(inner);
        shape
    });
    let dtypes = prop::sample::select(vec![DType::Uint8, DType::Bfloat16, DType::Float64]);
    let one = (shape, dtypes, prop::collection::vec((0.0..1.0, 0.0..1.0), 3), any::<bool>());
    prop::collection::vec(one, 1..5).prop_map(|raw| {
        let mut models: Vec<Sliced> = Vec::new();
        for (number, (shape, dtype, cuts, tied)) in raw.into_iter().enumerate() {
            let mut made = tensor(&format!("layer.{number}"), dtype, &shape);
            if let (true, Some((root, _))) = (tied, models.first()) {
                let spec = TensorSpec { name: made.spec.name, tied_to: Some(0), ..root.spec.clone() };
                made = Tensor { spec, bytes: root.bytes.clone() };
            }
            models.push((made.clone(), ranges(&made.spec.shape, &cuts)));
        }
        models
    })
}

/// Parts of dimensions, given as fractions: a third of the dimensions stays whole.
#[allow(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "fractions of small sizes")]
fn ranges(shape: &[u64], cuts: &[(f64, f64)]) -> Vec<Range<u64>> {
    let range = |(&size, &(one, other)): (&u64, &(f64, f64))| {
        let at = |fraction: f64| (fraction * (size + 1) as f64) as u64;
        if one < 0.3 { 0..size } else { at(one.min(other))..at(one.max(other)) }
    };
    shape.iter().zip(cuts).map(range).collect()
}

fn selected(models: &[Sliced]) -> (Vec<String>, Vec<Cut>) {
    let names = models.iter().map(|(tensor, _)| tensor.spec.name.clone()).collect();
    let cuts = models.iter().enumerate().flat_map(|(tensor, (made, ranges))| {
        let partial = ranges.iter().zip(&made.spec.shape).enumerate();
        let partial = partial.filter(|(_, (range, size))| **range != (0..**size));
        partial.map(move |(dim, (range, _))| Cut { tensor, dim, range: range.clone() })
    });
    (names, cuts.collect())
}

/// The runs of a slice in its tensor's bytes, cut by hand and joined where they touch.
fn runs(sliced: &Sliced) -> Vec<Range<usize>> {
    let (tensor, ranges) = sliced;
    let size = tensor.spec.dtype.size();
    let mut elements = vec![0];
    for (&dim, range) in tensor.spec.shape.iter().zip(ranges) {
        elements = elements.iter().flat_map(|at| range.clone().map(move |index| at * dim + index)).collect();
    }
    let mut runs: Vec<Range<usize>> = Vec::new();
    for element in elements {
        let (start, end) = ((element * size) as usize, ((element + 1) * size) as usize);
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

fn expected(sliced: &Sliced) -> Vec<u8> {
    runs(sliced).into_iter().flat_map(|run| &sliced.0.bytes[run]).copied().collect()
}

fn shown(index: &Index, file: &[u8], memory: &[Vec<u8>], plan: &ReadPlan, view: &View) -> Vec<u8> {
    let (start, bytes) = (view.offset as usize, view.bytes() as usize);
    assert!(view.source < index.records().len());
    match plan.memory[view.memory] {
        Memory::Mapping => file[start..start + bytes].to_vec(),
        Memory::Buffer(_) => memory[view.memory][start..start + bytes].to_vec(),
    }
}

fn places() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![Place::Mapping, Place::Host, Place::GivenHost])
}

/// The chunks' places in the file.
fn chunks(plan: &ReadPlan) -> Vec<Range<u64>> {
    plan.tasks.iter().flatten().map(|chunk| chunk.offset..chunk.end()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_are_parts_of_the_whole(
        models in sliced_models(),
        place in places(),
        verify in prop::sample::select(vec![Verify::Never, Verify::Whole, Verify::Everything]),
        chunk in prop::sample::select(vec![1000_u64, 4096, 1 << 20]),
        direct in any::<bool>(),
    ) {
        let tensors: Vec<Tensor> = models.iter().map(|(tensor, _)| tensor.clone()).collect();
        let file = packed(&tensors, 128);
        let reader = Reader::new(MemorySource::new(file.clone())).unwrap();
        let (names, cuts) = selected(&models);
        let settings = Settings { direct, ..settings(place, verify, 2, chunk) };
        let selection = Selection::Slices { names: &names, cuts: &cuts };
        let plan = ReadPlan::new(reader.index(), selection, settings).unwrap();
        let mut memory = execute(&reader, &plan).unwrap();
        if place == Place::GivenHost {
            for (number, view) in plan.views.iter().enumerate() {
                memory[number] = memory[view.memory].clone();
            }
        }
        let root = |number: usize| models[number].0.spec.tied_to.unwrap_or(number);
        for (number, (view, sliced)) in plan.views.iter().zip(&models).enumerate() {
            let same = |&other: &usize| root(other) == root(number) && models[other].1 == sliced.1;
            let first = (0..number).find(same).filter(|_| view.bytes() > 0);
            prop_assert_eq!(view.same_as, first.unwrap_or(number));
            let sizes: Vec<u64> = sliced.1.iter().map(|range| range.end - range.start).collect();
            prop_assert_eq!(&*view.shape, &*sizes);
            let bytes = shown(reader.index(), &file, &memory, &plan, view);
            prop_assert_eq!(bytes, expected(sliced), "{}", sliced.0.spec.name);
        }
    }

    #[test]
    fn what_is_needed_is_read_once_and_little_more(
        mut models in sliced_models(),
        verify in prop::sample::select(vec![Verify::Never, Verify::Whole]),
        chunk in prop::sample::select(vec![1000_u64, 4096, 1 << 20]),
        direct in any::<bool>(),
    ) {
        // Different slices of tied tensors are read one after the other: that is what the other test is for.
        models.retain(|(tensor, _)| tensor.spec.tied_to.is_none());
        let tensors: Vec<Tensor> = models.iter().map(|(tensor, _)| tensor.clone()).collect();
        let reader = Reader::new(MemorySource::new(packed(&tensors, 128))).unwrap();
        let index = reader.index();
        let (names, cuts) = selected(&models);
        let settings = Settings { direct, ..settings(Place::Host, verify, 2, chunk) };
        let selection = Selection::Slices { names: &names, cuts: &cuts };
        let plan = ReadPlan::new(index, selection, settings).unwrap();
        let read = chunks(&plan);
        prop_assert!(read.windows(2).all(|pair| pair[0].end <= pair[1].start), "in order, nothing twice: {read:?}");
        let (mut needed, mut count) = (0, 0);
        for sliced in &models {
            let record = &index.records()[index.find(&sliced.0.spec.name).unwrap()];
            let start = index.file_range(record).start;
            for run in runs(sliced) {
                let (first, last) = (start + run.start as u64, start + run.end as u64 - 1);
                prop_assert!([first, last].iter().all(|at| read.iter().any(|range| range.contains(at))));
                needed += run.len() as u64;
                count += 1;
            }
        }
        if cuts.is_empty() {
            return Ok(());
        }
        prop_assert!(plan.read_bytes() <= needed + 8192 * count, "{} for {needed} in {count}", plan.read_bytes());
    }

    #[test]
    fn direct_reads_of_rows_are_whole_units(rows in 1_u64..30, from in 0_u64..40_000, bytes in 1_u64..9000) {
        let wide = tensor("wide", DType::Uint8, &[rows, 50_000]);
        let reader = Reader::new(MemorySource::new(packed(&[wide], 128))).unwrap();
        let cuts = [Cut { tensor: 0, dim: 1, range: from..from + bytes }];
        let names = ["wide".to_owned()];
        let settings = Settings { direct: true, ..settings(Place::Host, Verify::Never, 1, 1 << 20) };
        let selection = Selection::Slices { names: &names, cuts: &cuts };
        let plan = ReadPlan::new(reader.index(), selection, settings).unwrap();
        let end = reader.index().payload_bytes();
        for range in chunks(&plan).into_iter().filter(|_| rows > 1) {
            prop_assert_eq!(range.start % 4096, 0);
            prop_assert!(range.end.is_multiple_of(4096) || end - range.end < 4096);
        }
    }
}

#[test]
fn a_plan_of_short_runs_is_short() {
    let spec = TensorSpec {
        name: "w".to_owned(),
        dtype: DType::Uint8,
        shape: vec![1 << 30, 2, 3, 3],
        tied_to: None,
    };
    let layout = Layout::new(&[spec], Order::Given, 128, BTreeMap::new()).unwrap();
    let index = layout.into_index(Algorithm::Xxh3, Vec::new());
    let cuts = [Cut { tensor: 0, dim: 3, range: 0..1 }, Cut { tensor: 0, dim: 2, range: 1..3 }];
    let names = ["w".to_owned()];
    let selection = Selection::Slices { names: &names, cuts: &cuts };
    let plan = ReadPlan::new(&index, selection, settings(Place::Host, Verify::Never, 1, 8 << 20)).unwrap();
    let chunks: Vec<_> = plan.tasks.iter().flatten().collect();
    assert!(chunks.len() <= (18 << 30) / (8 << 20) + 1, "{} chunks for 4 billion runs", chunks.len());
    assert!(chunks.iter().all(|chunk| matches!(chunk.parts[0].target, Some(Target::Rows(0, _)))));
    assert_eq!(plan.memory, [Memory::Buffer(4 << 30)]);
}

#[test]
fn payload_ranges_are_the_bytes_of_the_file() {
    let file = packed(&[tensor("a", DType::Float32, &[3000]), tensor("b", DType::Uint8, &[77])], 128);
    let reader = Reader::new(MemorySource::new(file.clone())).unwrap();
    let end = reader.index().payload_bytes();
    let plan = |ranges: &[Range<u64>]| {
        let settings = settings(Place::GivenHost, Verify::Whole, 2, 4096);
        ReadPlan::new(reader.index(), Selection::Payload(ranges), settings)
    };
    let ranges = [0..5, 5..5, 4097..end];
    let memory = execute(&reader, &plan(&ranges).unwrap()).unwrap();
    for (range, bytes) in ranges.iter().zip(memory) {
        assert_eq!(bytes, file[range.start as usize..range.end as usize]);
    }
    for bad in [[0..1, 1..end + 1], [5..9, 4..20], [0..9, 8..9]] {
        assert_eq!(plan(&bad).unwrap_err().kind(), ErrorKind::Argument, "{bad:?}");
    }
}
