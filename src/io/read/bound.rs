//! Chunks with the memory that their bytes go to.

use std::{iter, mem, ops::Range, sync::Arc};

use crate::plan::{Chunk, Move, Rows};

/// Chunks that follow each other in the file, with the memory they fill.
pub(super) struct Run<'p, 'm> {
    pub(super) chunks: &'p [Chunk],
    pub(super) parts: Vec<Bound<'m>>,
}

/// The runs of chunks that follow each other without a gap.
pub fn runs(task: &[Chunk]) -> impl Iterator<Item = &[Chunk]> {
    task.chunk_by(|one, next| one.end() == next.offset)
}

/// The bytes of the file that a run of chunks is.
pub fn span(run: &[Chunk]) -> Range<u64> {
    run.first().map_or(0, |first| first.offset)..run.last().map_or(0, Chunk::end)
}

pub(super) enum Bound<'m> {
    /// Read straight into the memory.
    Fill(&'m mut [u8]),
    /// Read elsewhere and copied to the memory.
    Copy(&'m mut [u8]),
    /// Bytes of the file, of which those of the runs are copied to the memory.
    Gather(Range<u64>, &'m mut [u8], Arc<Rows>),
    Skip(u64),
}

impl<'m> Bound<'m> {
    pub(super) const fn bytes(&self) -> u64 {
        match self {
            Self::Fill(memory) | Self::Copy(memory) => memory.len() as u64,
            Self::Gather(file, ..) => file.end - file.start,
            Self::Skip(bytes) => *bytes,
        }
    }

    /// Those that cannot be read straight into the memory.
    pub(super) const fn bytes_elsewhere(&self) -> u64 {
        match self {
            Self::Fill(_) | Self::Copy(_) => 0,
            Self::Gather(..) | Self::Skip(_) => self.bytes(),
        }
    }

    /// The first `bytes` of it, and the others.
    fn split(self, bytes: u64) -> (Self, Self) {
        match self {
            Self::Fill(memory) => {
                let (now, later) = memory.split_at_mut(to_usize(bytes));
                (Self::Fill(now), Self::Fill(later))
            }
            Self::Copy(memory) => {
                let (now, later) = memory.split_at_mut(to_usize(bytes));
                (Self::Copy(now), Self::Copy(later))
            }
            Self::Gather(Range { start, end }, memory, rows) => {
                let middle = start + bytes;
                let wanted = rows.gathered(&(start..middle));
                let (now, later) = memory.split_at_mut(to_usize(wanted.end - wanted.start));
                let first = Self::Gather(start..middle, now, Arc::clone(&rows));
                (first, Self::Gather(middle..end, later, rows))
            }
            Self::Skip(all) => (Self::Skip(bytes), Self::Skip(all - bytes)),
        }
    }

    /// The same, which begins at `offset` of the file, in parts of no more than `piece` bytes each unless it is read
    /// straight into its memory.
    fn in_pieces(self, offset: u64, piece: u64) -> impl Iterator<Item = Self> + use<'m> {
        let mut rest = Some((self, offset));
        iter::from_fn(move || {
            let (part, offset) = rest.take()?;
            // Up to where pieces begin, which is where units of direct reads do.
            let room = piece - offset % piece;
            if part.bytes() <= room || matches!(part, Self::Fill(_)) {
                return Some(part);
            }
            let (now, later) = part.split(room);
            rest = Some((later, offset + room));
            Some(now)
        })
    }
}

/// Hands each task its disjoint slices of `memory`, where reads land if `lands`, else in pieces. Chunks come in file order
/// and a plan places in file order, so each memory is split front to back.
pub(super) fn bind<'p, 'm: 'p>(
    tasks: &'p [Vec<Chunk>],
    memory: Vec<&'m mut [u8]>,
    lands: bool,
    piece: u64,
) -> impl Iterator<Item = Vec<Run<'p, 'm>>> + Send + use<'p, 'm> {
    let mut unfilled: Vec<(u64, &mut [u8])> = memory.into_iter().map(|memory| (0, memory)).collect();
    let mut take = move |memory: usize, place: &Range<u64>| {
        let (position, rest) = &mut unfilled[memory];
        let skip = to_usize(place.start - *position);
        let (taken, left) = mem::take(rest)[skip..].split_at_mut(to_usize(place.end - place.start));
        (*position, *rest) = (place.end, left);
        taken
    };
    let mut tasks = tasks.iter();
    iter::from_fn(move || {
        let mut bind_run = |chunks: &'p [Chunk]| {
            let mut parts = Vec::with_capacity(chunks.len());
            let Range { start: mut cursor, end } = span(chunks);
            let gap = |file: Range<u64>| (!file.is_empty()).then(|| Bound::Skip(file.end - file.start));
            for Move { file, memory, place, rows } in joined(chunks.iter().flat_map(Chunk::moves)) {
                let gap = gap(cursor..file.start).into_iter();
                parts.extend(gap.flat_map(|gap| gap.in_pieces(cursor, piece)));
                cursor = file.end;
                let slice = take(memory, &place);
                let offset = file.start;
                let bound = match rows {
                    None if lands => Bound::Fill(slice),
                    None => Bound::Copy(slice),
                    Some(rows) => Bound::Gather(file, slice, Arc::clone(rows)),
                };
                parts.extend(bound.in_pieces(offset, piece));
            }
            let gap = gap(cursor..end).into_iter();
            parts.extend(gap.flat_map(|gap| gap.in_pieces(cursor, piece)));
            Run { chunks, parts }
        };
        tasks.next().map(|task| runs(task).map(&mut bind_run).collect())
    })
}

/// The same moves, of which those of whole bytes that follow each other in the file and in memory are one.
fn joined<'a>(moves: impl Iterator<Item = Move<'a>>) -> impl Iterator<Item = Move<'a>> {
    let mut moves = moves.peekable();
    iter::from_fn(move || {
        let mut first = moves.next()?;
        let follows = |first: &Move<'_>, next: &Move<'_>| {
            let whole = first.rows.is_none() && next.rows.is_none() && first.memory == next.memory;
            whole && first.file.end == next.file.start && first.place.end == next.place.start
        };
        while let Some(next) = moves.next_if(|next| follows(&first, next)) {
            (first.file.end, first.place.end) = (next.file.end, next.place.end);
        }
        Some(first)
    })
}

/// Offsets within memory that exists fit `usize`.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("offsets into memory fit usize")
}
