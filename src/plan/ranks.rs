//! Which rank reads which bytes of a model that several ranks load together, and in which order.
//!
//! The ranks hold an image: the wanted parts of the model, one after another. They read it in windows, each for all of
//! them.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    ops::Range,
};

use super::{DIRECT_ALIGN_BYTES, Selection, View, select};
use crate::{
    error::Result,
    format::{Index, Macroblock, checksum::MAX_CHUNK_BYTES},
};

/// Bytes that are read whole where there are no checksums to say how many.
const DEFAULT_UNIT_BYTES: u64 = 1 << 20;
/// The most that a rank reads at a time unless it is told.
const MAX_WINDOW_BYTES: u64 = 256 << 20;
/// Several windows in each rank's part, so that reading one overlaps sending another.
const WINDOWS_OF_A_PART: u64 = 4;
/// No smaller windows than these, as each takes a round of messages.
const MIN_WINDOW_BYTES: u64 = 16 << 20;

/// How the ranks share the reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This rank reads everything.
    One(usize),
    /// Each rank reads one part.
    Contiguous,
    /// The ranks take turns.
    Windows,
}

/// The ranks, and how they load.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Their number.
    pub ranks: NonZeroUsize,
    /// Who reads what.
    pub sharing: Sharing,
    /// Bytes that are read whole; see [`unit_of`].
    pub unit: u64,
    /// Bytes of a window, rounded up to a multiple of `unit`; `None` chooses.
    pub window_bytes: Option<NonZeroU64>,
}

/// Bytes that are read whole: those of a checksum, as far as direct reads can begin at any multiple.
#[must_use]
pub fn unit_of(chunk_bytes: Option<u64>) -> u64 {
    match chunk_bytes.filter(|bytes| (1..=MAX_CHUNK_BYTES).contains(bytes)) {
        None => DEFAULT_UNIT_BYTES,
        Some(bytes) if bytes.is_multiple_of(DIRECT_ALIGN_BYTES) => bytes,
        Some(bytes) => bytes * DIRECT_ALIGN_BYTES,
    }
}

/// Bytes of the image, which one rank reads for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The rank.
    pub owner: usize,
    /// Where in the image.
    pub range: Range<u64>,
    /// Where they are in the file: for each piece its first byte there, and its place in the image.
    pub pieces: Vec<(u64, Range<u64>)>,
}

/// A load by several ranks.
#[derive(Clone, Debug)]
pub struct Together {
    /// Bytes of the image.
    pub bytes: u64,
    /// The tensors, each at its offset of the image. Those that are the same bytes of the file have the same offset.
    pub views: Vec<View>,
    /// The windows: those of one step are read at the same time.
    pub steps: Vec<Vec<Window>>,
}

impl Together {
    /// Plans the load of `selection`.
    ///
    /// `several`: the model is of several files, of which only the macroblocks are known to be there.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that the model does not have.
    pub fn new(index: &Index, selection: Selection<'_>, several: bool, group: &Group) -> Result<Self> {
        let wanted = select::select(index, selection)?;
        let ranges = wanted.iter().map(|wanted| wanted.file.clone()).collect();
        let image = Image::new(ranges, group.unit, &readable(index, several));
        let place = |wanted: select::Wanted| View {
            offset: if wanted.file.is_empty() { 0 } else { image.offset_of(wanted.file.start) },
            ..wanted.view
        };
        let views = wanted.into_iter().map(place).collect();
        let window = |(owner, range): (usize, Range<u64>)| {
            let pieces = image.pieces(range.start, range.end).collect();
            Window { owner, range, pieces }
        };
        let steps = steps(image.bytes, group).map(|step| step.map(window).collect()).collect();
        Ok(Self { bytes: image.bytes, views, steps })
    }
}

/// What can be read whole: the payload, or the blocks of several files, between which nothing is.
fn readable(index: &Index, several: bool) -> Vec<Range<u64>> {
    let blocks = index.blocks().iter().map(Macroblock::file_range);
    let mut blocks: Vec<_> = blocks.filter(|block| !block.is_empty()).collect();
    blocks.sort_unstable_by_key(|block| block.start);
    match blocks.last() {
        Some(last) if !several => [Range { start: 0, end: last.end }].into(),
        _ => blocks,
    }
}

/// Bytes of the file, and where the image has the first of them.
#[derive(Debug)]
struct Span {
    file: Range<u64>,
    offset: u64,
}

impl Span {
    const fn end(&self) -> u64 {
        self.offset + self.file.end - self.file.start
    }
}

/// Parts of a file, one after another, each as far from a unit's beginning as in the file.
#[derive(Debug)]
struct Image {
    spans: Vec<Span>,
    bytes: u64,
}

impl Image {
    /// The units that `ranges` of the file touch, as far as they lie in the same range of `whole`.
    ///
    /// Each of `ranges` that is not empty lies in one of these, which are sorted and do not overlap.
    fn new(mut ranges: Vec<Range<u64>>, unit: u64, whole: &[Range<u64>]) -> Self {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        let mut spans: Vec<Span> = Vec::new();
        for range in ranges {
            let around = &whole[whole.partition_point(|piece| piece.start <= range.start) - 1];
            let start = (range.start - range.start % unit).max(around.start);
            let end = range.end.next_multiple_of(unit).min(around.end);
            match spans.last_mut() {
                Some(last) if start <= last.file.end => last.file.end = last.file.end.max(end),
                last => {
                    let offset = last.map_or(0, |last| last.end()).next_multiple_of(unit) + start % unit;
                    spans.push(Span { file: start..end, offset });
                }
            }
        }
        let bytes = spans.last().map_or(0, Span::end);
        Self { spans, bytes }
    }

    /// Where the image has the byte `position` of the file, which it must hold.
    fn offset_of(&self, position: u64) -> u64 {
        let span = &self.spans[self.spans.partition_point(|span| span.file.start <= position) - 1];
        span.offset + position - span.file.start
    }

    /// Each piece of the image from `start` to `end`: its first byte in the file, and its place.
    fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Range<u64>)> {
        let first = self.spans.partition_point(|span| span.end() <= start);
        self.spans[first..].iter().take_while(move |span| span.offset < end).map(move |span| {
            let piece = start.max(span.offset)..end.min(span.end());
            (span.file.start + piece.start - span.offset, piece)
        })
    }
}

/// The windows of an image of `total` bytes, step by step, each with its owner.
fn steps(total: u64, group: &Group) -> impl Iterator<Item = impl Iterator<Item = (usize, Range<u64>)>> {
    let Group { sharing, unit, .. } = *group;
    let ranks = match sharing {
        Sharing::One(_) => 1,
        _ => group.ranks.get() as u64,
    };
    let part = total.div_ceil(ranks).next_multiple_of(unit);
    let window = group.window_bytes.map_or_else(
        || (part / WINDOWS_OF_A_PART).clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES),
        NonZeroU64::get,
    );
    let window = window.checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(part.max(unit));
    let range = move |step: u64, rank: u64| {
        let (start, end) = if sharing == Sharing::Windows {
            ((step * ranks + rank) * window, total)
        } else {
            (rank * part + step * window, total.min((rank + 1) * part))
        };
        start..end.min(start + window)
    };
    (0..part.div_ceil(window)).map(move |step| {
        let windows = (0..ranks).map(move |rank| (rank, range(step, rank)));
        windows.filter(|(_, range)| !range.is_empty()).map(move |(rank, range)| match sharing {
            Sharing::One(owner) => (owner, range),
            _ => (usize::try_from(rank).expect("it is one of a usize"), range),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::format::{
        DType,
        checksum::{Algorithm, Digest},
        layout::{Layout, Order, TensorSpec},
    };

    const UNIT: u64 = 64;

    fn group(ranks: usize, sharing: Sharing, window_bytes: Option<u64>) -> Group {
        let ranks = NonZeroUsize::new(ranks).unwrap();
        Group { ranks, sharing, unit: UNIT, window_bytes: window_bytes.and_then(NonZeroU64::new) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_byte_is_read_once_by_ranks_that_share_the_work(
            total in 0_u64..20_000, ranks in 1_usize..9, mode in 0_usize..3, window_bytes in prop::option::of(1_u64..4000)
        ) {
            let sharing = [Sharing::One(ranks - 1), Sharing::Contiguous, Sharing::Windows][mode];
            let group = group(ranks, sharing, window_bytes);
            let steps: Vec<Vec<_>> = steps(total, &group).map(Iterator::collect).collect();
            for step in &steps {
                let owners: HashSet<_> = step.iter().map(|(owner, _)| owner).collect();
                prop_assert_eq!(owners.len(), step.len());
            }
            let mut windows = steps.concat();
            windows.sort_unstable_by_key(|(_, range)| range.start);
            let mut end = 0;
            for (_, range) in &windows {
                prop_assert!(range.start == end && range.end > end && range.start % UNIT == 0);
                end = range.end;
            }
            prop_assert_eq!(end, total);
            let bytes = |(_, range): &(usize, Range<u64>)| range.end - range.start;
            let largest = windows.iter().map(bytes).max().unwrap_or(0);
            prop_assert!(window_bytes.is_none_or(|bytes| largest < bytes + UNIT));
            let share = |rank| windows.iter().filter(|it| it.0 == rank).map(bytes).sum::<u64>();
            match sharing {
                Sharing::One(rank) => prop_assert_eq!(share(rank), total),
                _ => for rank in 0..ranks {
                    prop_assert!(share(rank) <= total.div_ceil(ranks as u64) + largest.max(UNIT));
                }
            }
        }

        #[test]
        fn an_image_holds_the_units_that_ranges_touch(
            ranges in prop::collection::vec((0_u64..5000, 0_u64..900), 0..9),
            cut in 0_u64..9000,
            edges in prop::collection::btree_set(1_u64..6000, 0..4),
            gap in 0_u64..70,
        ) {
            // The file is whole but for gaps before these edges, and each range lies in one piece of it.
            let starts: Vec<u64> = std::iter::once(0).chain(edges).collect();
            let ends = starts[1..].iter().chain(&[6100]);
            let whole: Vec<_> =
                starts.iter().zip(ends).map(|(&start, &end)| start..end.saturating_sub(gap).max(start)).collect();
            let inside = |&(start, length): &(u64, u64)| {
                whole.clone().into_iter().map(move |piece| start.max(piece.start)..(start + length).min(piece.end))
            };
            let mut parts: Vec<_> = ranges.iter().flat_map(inside).collect();
            parts.retain(|part| !part.is_empty());
            let image = Image::new(parts.clone(), UNIT, &whole);

            let piece_of = |at: u64| whole.iter().position(|piece| piece.contains(&at)).unwrap();
            let touched: BTreeSet<_> =
                parts.iter().cloned().flatten().map(|at| (piece_of(at), at / UNIT)).collect();
            let unit = |&(piece, unit): &(usize, u64)| {
                let Range { start, end } = whole[piece];
                (unit * UNIT).max(start)..((unit + 1) * UNIT).min(end)
            };
            let expected: Vec<u64> = touched.iter().flat_map(unit).collect();
            let mut places = BTreeMap::new();
            for (file, range) in image.pieces(0, image.bytes) {
                prop_assert_eq!(file % UNIT, range.start % UNIT);
                places.extend(range.clone().map(|at| (at, file + at - range.start)));
            }
            prop_assert_eq!(&places.values().copied().collect::<Vec<_>>(), &expected);
            prop_assert_eq!(image.bytes, places.last_key_value().map_or(0, |(last, _)| last + 1));
            for position in parts.into_iter().flatten() {
                prop_assert_eq!(places[&image.offset_of(position)], position);
            }
            let both = image.pieces(0, cut).chain(image.pieces(cut, image.bytes));
            let both: Vec<u64> = both.flat_map(|(file, range)| file..file + range.end - range.start).collect();
            if cut <= image.bytes {
                prop_assert_eq!(both, expected);
            }
        }
    }

    fn index() -> Index {
        let spec = |(name, dtype, shape, tied_to): (&str, DType, &[u64], Option<usize>)| TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            tied_to,
        };
        let specs = [
            ("a", DType::Float32, &[100][..], None),
            ("b", DType::Uint8, &[7], None),
            ("empty", DType::Float32, &[0, 3], None),
            ("tied", DType::Float32, &[10, 10], Some(0)),
        ];
        Layout::new(&specs.map(spec), Order::Given, 0, BTreeMap::new())
            .unwrap()
            .into_index(Algorithm::Xxh3, vec![Digest::Xxh3(0)])
    }

    #[test]
    fn tied_tensors_lie_in_one_place_and_what_is_empty_anywhere() {
        let index = index();
        let group = group(2, Sharing::Contiguous, None);
        let names = ["tied", "empty", "b", "a"].map(str::to_owned);
        let load = Together::new(&index, Selection::Names(&names), false, &group).unwrap();
        let [tied, empty, b, a] = &*load.views else { panic!("{:?}", load.views) };
        assert_eq!((tied.offset, &*tied.shape), (a.offset, &[10, 10][..]));
        assert_eq!((empty.offset, empty.bytes(), b.bytes()), (0, 0, 7));
        assert_eq!(load.steps.concat().iter().map(|it| it.range.end).max(), Some(load.bytes));
        assert!(
            load.steps.concat().iter().all(|it| it.pieces[0].0 == it.range.start),
            "the file from its start"
        );

        let error = Together::new(&index, Selection::Names(&["c".to_owned()]), false, &group).unwrap_err();
        assert!(error.to_string().contains("no tensor named \"c\""), "{error}");
        let nothing = Together::new(&index, Selection::Names(&[]), false, &group).unwrap();
        assert_eq!((nothing.bytes, nothing.steps.len()), (0, 0));
    }

    #[test]
    fn of_several_files_only_blocks_are_read() {
        let index = index();
        let blocks: Vec<_> = index.blocks().iter().map(Macroblock::file_range).collect();
        let alone = Group { unit: 2 * blocks[1].end, ..group(1, Sharing::One(0), None) };
        let read = |several| {
            let load = Together::new(&index, Selection::Blocks, several, &alone).unwrap();
            let pieces = load.steps.into_iter().flatten().flat_map(|window| window.pieces);
            pieces.map(|(file, at)| file..file + at.end - at.start).collect::<Vec<_>>()
        };
        assert_eq!(read(true), blocks);
        assert_eq!(read(false), [Range { start: 0, end: blocks[1].end }]);
    }

    #[test]
    fn units_are_chunks_that_direct_reads_can_begin_at() {
        let units = [None, Some(0), Some(1 << 16), Some(4096), Some(64)].map(unit_of);
        assert_eq!(units, [1 << 20, 1 << 20, 1 << 16, 4096, 64 * 4096]);
    }
}
