//! What the targets share: loads drawn from a few bytes, and the obvious way to check them.

mod device;
pub mod image;
mod wish;

pub use device::Immediate;
pub use wish::{WISH_BYTES, Wish};

use flashpack::{
    Progress, Reader, Result,
    device::{pool::Pool, transfer},
    format::Index,
    io::{self, Source, read::ChunkReader},
    plan::{Cut, Memory, ReadPlan, Selection},
    stats::Clock,
};

/// Plans the load that `wish` describes and carries it out; the bytes of each tensor, in order.
///
/// # Errors
/// Those of the plan and of reading.
pub fn load<S: Source>(reader: &Reader<S>, wish: &Wish) -> Result<Vec<Vec<u8>>> {
    let names = wish.names(reader.index());
    let cuts = wish.cuts(reader.index(), &names);
    let plan = ReadPlan::new(reader.index(), wish.selection(&names, &cuts), wish.settings())?;
    let mut memory: Vec<Vec<u8>> = plan.memory.iter().map(room).collect();
    let (progress, clock) = (Progress::SILENT, Clock::default());
    let chunks = ChunkReader { source: reader.source(), index: reader.index(), progress, clock: &clock };
    if plan.place.is_staged() {
        let device = Immediate::new(memory);
        transfer::transfer(&chunks, &plan.tasks, &device, &Pool::new(POOL_BYTES), plan.readers)?;
        memory = device.into_memories();
    } else {
        let slices = memory.iter_mut().map(Vec::as_mut_slice).collect();
        io::read::read(&chunks, &plan.tasks, slices, plan.readers)?;
    }
    Ok(plan.views.iter().map(|view| shown(view, &plan, &memory, reader.source())).collect())
}

/// Few enough for readers to wait for each other's buffers.
const POOL_BYTES: usize = 2 << 20;

fn room(memory: &Memory) -> Vec<u8> {
    match *memory {
        Memory::Mapping => Vec::new(),
        Memory::Buffer(bytes) => vec![0xAA; to_usize(bytes)],
    }
}

/// The bytes that `view` shows; a mapping shows those of the file.
fn shown(view: &flashpack::plan::View, plan: &ReadPlan, memory: &[Vec<u8>], source: &impl Source) -> Vec<u8> {
    let (start, bytes) = (to_usize(view.offset), to_usize(view.bytes()));
    assert!(view.offset.is_multiple_of(view.dtype.size()), "{view:?} is not aligned to its elements");
    if bytes == 0 {
        return Vec::new();
    }
    match plan.memory[view.memory] {
        Memory::Buffer(_) => memory[view.memory][start..start + bytes].to_vec(),
        Memory::Mapping => {
            assert!(view.offset + view.bytes() <= source.len(), "{view:?} leaves the file");
            let mut copy = vec![0; bytes];
            // Of a source that fails, the mapping cannot be shown.
            source.read_exact_at(&mut copy, view.offset).map_or(Vec::new(), |()| copy)
        }
    }
}

/// What a load of `wish` has to give: the bytes of `image` that the index names.
#[must_use]
pub fn expected(index: &Index, wish: &Wish, image: &[u8]) -> Vec<Vec<u8>> {
    let slice = |range: std::ops::Range<u64>| image[to_usize(range.start)..to_usize(range.end)].to_vec();
    let names = wish.names(index);
    let cuts = wish.cuts(index, &names);
    match wish.selection(&names, &cuts) {
        Selection::Blocks => index.blocks().iter().map(|block| slice(block.file_range())).collect(),
        Selection::Names(names) => names
            .iter()
            .map(|name| index.find(name).expect("names are drawn from the index"))
            .map(|record| slice(index.file_range(&index.records()[record])))
            .collect(),
        Selection::Except(ignore) => index
            .records()
            .iter()
            .filter(|record| !ignore.matches(record.name()))
            .map(|record| slice(index.file_range(record)))
            .collect(),
        Selection::Slices { names, cuts } => {
            let cut = |tensor| cuts.iter().find(|cut| cut.tensor == tensor);
            let part = |(tensor, name): (usize, &String)| {
                let record = &index.records()[index.find(name).expect("names are drawn from the index")];
                let whole = slice(index.file_range(record));
                cut(tensor).map_or(whole.clone(), |cut| part_of(&whole, record.shape(), cut))
            };
            names.iter().enumerate().map(part).collect()
        }
        Selection::Payload(_) => unreachable!("wishes are for tensors"),
    }
}

/// The bytes that `cut` leaves of a tensor's.
fn part_of(whole: &[u8], shape: &[u64], cut: &Cut) -> Vec<u8> {
    let outer: usize = shape[..cut.dim].iter().map(|&size| to_usize(size)).product();
    if whole.is_empty() || outer == 0 {
        return Vec::new();
    }
    let row = whole.len() / outer;
    let step = row / to_usize(shape[cut.dim]);
    let range = to_usize(cut.range.start) * step..to_usize(cut.range.end) * step;
    whole.chunks(row).flat_map(|row| &row[range.clone()]).copied().collect()
}

/// # Panics
/// If `value` does not fit, as no length of something in memory does not.
#[must_use]
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("what is in memory fits usize")
}
