//! Where direct reads land: in memory of their own, which children that are forked meanwhile do not share.

mod common;

use std::{fs, io, path::Path, sync::Mutex};

use common::{packed_by_default, settings, tensor};
use flashpack::{
    Progress, Reader,
    format::{DType, Index},
    io::{
        HostBuffer, Pages, Source,
        memory::MemorySource,
        read::{ChunkReader, read_anywhere},
    },
    plan::{Ignore, Memory, Place, ReadPlan, Selection, Verify},
    stats::Clock,
};

/// Bytes as past the page cache, and of each read its offset, the address it went to, and whether children share that.
struct Watched {
    bytes: MemorySource,
    reads: Mutex<Vec<(u64, usize, bool)>>,
}

impl Source for Watched {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let address = buffer.as_ptr().addr();
        self.reads.lock().unwrap().push((offset, address, children_share(address)));
        self.bytes.read_at(buffer, offset)
    }

    fn len(&self) -> u64 {
        self.bytes.len()
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn path(&self) -> &Path {
        self.bytes.path()
    }
}

/// Whether the mapping that `address` lies in goes to children: without the flag `dc`.
fn children_share(address: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut within = false;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let numbers =
            range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
        if let Some((Ok(from), Ok(to))) = numbers {
            within = (from..to).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| within) {
            return !flags.split(' ').any(|flag| flag == "dc");
        }
    }
    panic!("no mapping holds {address:x}");
}

/// Loads `index` into vectors, as the tensors of a model are.
fn load_in_place(source: &Watched, index: &Index, verify: Verify) -> Vec<Vec<u8>> {
    let everything = Ignore::default();
    let in_place = settings(Place::GivenHost, verify, 1, 8 << 20);
    let plan = ReadPlan::new(index, Selection::Except(&everything), in_place).unwrap();
    let room = |memory: &Memory| match *memory {
        Memory::Buffer(bytes) => vec![0xAA; usize::try_from(bytes).unwrap()],
        Memory::Mapping => panic!("nothing is mapped in place"),
    };
    let mut memory: Vec<Vec<u8>> = plan.memory.iter().map(room).collect();
    let slices = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let (progress, clock) = (Progress::SILENT, Clock::default());
    let chunks = ChunkReader { source, index, progress, clock: &clock };
    read_anywhere(&chunks, &plan.tasks, slices, plan.readers).unwrap();
    memory
}

#[test]
fn tensors_that_exist_are_filled_through_memory_of_the_engine() {
    let tensors: Vec<_> = [1, 700, 6_200_007, 40, 9_000_001]
        .into_iter()
        .map(|size| tensor(&format!("t{size}"), DType::Uint8, &[size]))
        .collect();
    let file = packed_by_default(&tensors);
    let index = Reader::new(MemorySource::new(file.clone())).unwrap().into_parts().1;
    for verify in [Verify::Never, Verify::Whole] {
        let source = Watched { bytes: MemorySource::new(file.clone()), reads: Mutex::default() };
        let memory = load_in_place(&source, &index, verify);
        for (record, bytes) in index.records().iter().zip(&memory) {
            let expected = tensors.iter().find(|tensor| tensor.spec.name == record.name()).unwrap();
            assert!(*bytes == expected.bytes, "{}", record.name());
        }
        let reads = source.reads.into_inner().unwrap();
        assert!(reads.len() > 5);
        for (offset, address, shared) in reads {
            assert_eq!((offset % 4096, shared), (address as u64 % 4096, false), "{offset}");
        }
    }
}

#[test]
fn buffers_suit_machines_with_any_pages() {
    let huge =
        [(4 << 10, Some(2 << 20)), (16 << 10, Some(32 << 20)), (64 << 10, Some(512 << 20)), (4 << 10, None)];
    for (bytes, huge) in huge {
        for len in [0, 1, 3 << 20] {
            let mut buffer = HostBuffer::on(Pages::new(bytes, huge), len).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_slice().iter().all(|&byte| byte == 0));
            let align = if huge == Some(2 << 20) && len > 1 { 2 << 20 } else { 4096 };
            assert_eq!(buffer.data().addr() % align, 0);
        }
    }
}
