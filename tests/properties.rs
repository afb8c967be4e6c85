//! Laws that hold for every model: round trips, plans, damage.
#![allow(clippy::cast_possible_truncation, reason = "test models are small")]

mod common;

use std::{collections::BTreeMap, ops::Range};

use common::{execute, load, models, packed, settings};
use flashpack::{
    ErrorKind, Reader,
    format::{
        BLOCK_ALIGN_BYTES,
        checksum::Algorithm,
        footer,
        layout::{Layout, Order, TensorSpec},
    },
    io::memory::{Faults, MemorySource},
    plan::{Ignore, Memory, Place, ReadPlan, Selection, Verify},
};
use proptest::{prelude::*, sample::subsequence};

fn alignments() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0, 1, 3, 16, 128, 4096, 6000])
}

fn verifications() -> impl Strategy<Value = Verify> {
    prop::sample::select(vec![Verify::Never, Verify::Whole, Verify::Everything])
}

proptest! {
    // Failures are printed with their smallest input, which then becomes a test of its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_laid_out_parses_back(models in models(), align in alignments(), given in any::<bool>(), algorithm in prop::sample::select(&Algorithm::ALL[..])) {
        let specs: Vec<TensorSpec> = models.iter().map(|tensor| tensor.spec.clone()).collect();
        let order = if given { Order::Given } else { Order::LargestFirst };
        let metadata = BTreeMap::from([("k\u{e9}y".to_owned(), "\"value\"\n".to_owned())]);
        let layout = Layout::new(&specs, order, align, metadata).unwrap();
        let payload = layout.payload_bytes();
        let mut end = 0;
        for write in layout.writes() {
            prop_assert!(write.offset >= end && write.bytes > 0);
            end = write.offset + write.bytes;
        }
        prop_assert!(end <= payload, "only blocks without elements follow the last bytes");
        let digests = vec![algorithm.digest(b"a chunk"); payload.div_ceil(1 << 20) as usize];
        let index = layout.into_index(algorithm, digests);
        for block in index.blocks() {
            prop_assert_eq!(block.offset() % BLOCK_ALIGN_BYTES, 0);
        }
        let parsed = footer::parse(footer::render(&index).as_bytes(), payload).unwrap();
        prop_assert_eq!(parsed, index);
    }

    #[test]
    fn what_is_packed_loads(
        (models, wanted) in models().prop_flat_map(|models| {
            let count = models.len();
            (Just(models), subsequence((0..count).collect::<Vec<_>>(), 0..=count).prop_shuffle())
        }),
        align in alignments(),
        verify in verifications(),
        threads in 1_usize..4,
        chunk in prop::sample::select(vec![1_u64, 100, 4096, 1 << 20]),
        short_reads in prop::sample::select(vec![0_usize, 1, 13]),
    ) {
        let faults = Faults { short_reads, interrupt_every: 3, ..Faults::default() };
        let reader = Reader::new(MemorySource::with_faults(packed(&models, align), faults)).unwrap();
        let names: Vec<String> = wanted.iter().map(|&number| models[number].spec.name.clone()).collect();
        let loaded = load(&reader, Selection::Names(&names), settings(Place::Host, verify, threads, chunk)).unwrap();
        let expected: Vec<_> = wanted.iter().map(|&n| (models[n].spec.name.clone(), models[n].bytes.clone())).collect();
        prop_assert_eq!(loaded, expected);
    }

    #[test]
    fn a_plan_reads_what_is_wanted_once_and_little_more(
        models in models(),
        align in alignments(),
        keep in prop::collection::vec(any::<bool>(), 12),
        chunk in prop::sample::select(vec![64_u64, 1000, 1 << 20]),
    ) {
        let reader = Reader::new(MemorySource::new(packed(&models, align))).unwrap();
        let index = reader.index();
        let kept = models.iter().zip(keep).filter(|(_, keep)| *keep);
        let names: Vec<String> = kept.map(|(tensor, _)| tensor.spec.name.clone()).collect();
        let wanted = settings(Place::Host, Verify::Never, 2, chunk);
        let plan = ReadPlan::new(index, Selection::Names(&names), wanted).unwrap();
        let mut read: Vec<Range<u64>> = Vec::new();
        for chunk in plan.tasks.iter().flatten() {
            let bytes: u64 = chunk.parts.iter().map(|part| part.bytes).sum();
            prop_assert!(read.last().is_none_or(|last| last.end <= chunk.offset), "in order, nothing twice");
            read.push(chunk.offset..chunk.offset + bytes);
        }
        let mut needed: Vec<Range<u64>> = Vec::new();
        for view in &plan.views {
            let file = index.file_range(&index.records()[view.source]);
            for at in [file.start, file.end.saturating_sub(1)].into_iter().filter(|_| !file.is_empty()) {
                prop_assert!(read.iter().any(|range| range.contains(&at)));
            }
            prop_assert_eq!(view.offset % view.dtype.size(), 0);
            let bytes = file.end - file.start;
            let Memory::Buffer(room) = plan.memory[view.memory] else { panic!("eager plans map nothing") };
            prop_assert!(view.offset + bytes <= room);
            needed.push(file);
        }
        needed.sort_unstable_by_key(|range| range.start);
        needed.dedup();
        let needed_bytes: u64 = needed.iter().map(|range| range.end - range.start).sum();
        prop_assert!(plan.read_bytes() <= needed_bytes + 8192 * needed.len() as u64);
    }

    #[test]
    fn every_damaged_byte_is_noticed(models in models(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = packed(&models, 128);
        let payload = Reader::new(MemorySource::new(bytes.clone())).unwrap().index().payload_bytes();
        prop_assume!(payload > 0);
        bytes[at.index(payload as usize)] ^= 1 << bit;
        let reader = Reader::new(MemorySource::new(bytes)).unwrap();
        let everything = settings(Place::Host, Verify::Everything, 1, 4096);
        let error = load(&reader, Selection::Except(&Ignore::default()), everything).unwrap_err();
        prop_assert_eq!(error.kind(), ErrorKind::Checksum);
    }

    #[test]
    fn a_damaged_footer_is_refused_or_means_the_same(
        models in models(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = packed(&models, 128);
        let index = Reader::new(MemorySource::new(bytes.clone())).unwrap().index().clone();
        let footer = index.payload_bytes() as usize;
        let at = footer + at.index(bytes.len() - footer);
        bytes[at] = byte;
        if let Ok(reader) = Reader::new(MemorySource::new(bytes)) {
            // A changed key name hides an optional key; everything that is still there is as it was.
            prop_assert_eq!(reader.index().records(), index.records());
            prop_assert_eq!(reader.index().blocks(), index.blocks());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), footer in 0_usize..300) {
        let length = footer.min(bytes.len()) as u64;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(b"FLASHPK\0");
        prop_assert!(Reader::new(MemorySource::new(bytes)).is_err());
    }

    #[test]
    fn lazy_plans_verify_what_they_map(models in models(), align in alignments()) {
        let reader = Reader::new(MemorySource::new(packed(&models, align))).unwrap();
        let names: Vec<String> = models.iter().map(|tensor| tensor.spec.name.clone()).collect();
        let lazy = settings(Place::Mapping, Verify::Everything, 1, 4096);
        let plan = ReadPlan::new(reader.index(), Selection::Names(&names), lazy).unwrap();
        prop_assert_eq!(plan.read_bytes(), reader.index().payload_bytes());
        execute(&reader, &plan).unwrap();
    }
}
