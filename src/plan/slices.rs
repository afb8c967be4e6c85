//! Parts of tensors: which bytes of the file a slice takes, found by arithmetic, never by listing them.

use std::ops::Range;

use crate::error::{Error, Result};

/// Part of one dimension of a tensor that is loaded.
///
/// ```
/// use flashpack::plan::{Cut, Selection};
///
/// let names = ["weight".to_owned()];
/// let columns = [Cut { tensor: 0, dim: 1, range: 2..4 }]; // weight[:, 2:4]
/// let part = Selection::Slices { names: &names, cuts: &columns };
/// # let _ = part;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which of the selected names it is about.
    pub tensor: usize,
    /// Number of the dimension, the outermost first.
    pub dim: usize,
    /// The indices that are wanted.
    pub range: Range<u64>,
}

/// The shape of a tensor that `cuts` leave of one with `shape`, and the first index of each dimension.
///
/// # Errors
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a dimension or indices that `shape` does not have, and for
/// two cuts of one dimension.
pub(super) fn apply<'a>(
    name: &str,
    shape: &[u64],
    cuts: impl Iterator<Item = &'a Cut>,
) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Option<Range<u64>>> = vec![None; shape.len()];
    for Cut { dim, range, .. } in cuts {
        let refuse = |why: String| Error::argument(format!("{name:?} has shape {shape:?}: {why}"));
        let (Some(&size), Some(slot)) = (shape.get(*dim), ranges.get_mut(*dim)) else {
            return Err(refuse(format!("it has no dimension {dim}")));
        };
        if range.start > range.end || range.end > size {
            return Err(refuse(format!("its dimension {dim} has no part {}..{}", range.start, range.end)));
        }
        if slot.replace(range.clone()).is_some() {
            return Err(refuse(format!("its dimension {dim} is sliced twice")));
        }
    }
    Ok(ranges.into_iter().zip(shape).map(|(range, &size)| range.unwrap_or(0..size)).collect())
}

/// Runs of bytes of equal length at regular distances: a slice of a tensor, as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// The first byte of the first run.
    start: u64,
    run_bytes: u64,
    /// How often, and how far apart, the outermost first. Everything below a level ends before its next step.
    levels: Box<[Level]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Level {
    count: u64,
    stride: u64,
}

impl Rows {
    /// The bytes of the elements `ranges` of a row-major tensor of `shape`, whose elements of `size` bytes begin at
    /// `start`; `None` if there are none.
    pub(super) fn new(start: u64, size: u64, shape: &[u64], ranges: &[Range<u64>]) -> Option<Self> {
        if ranges.iter().any(Range::is_empty) {
            return None;
        }
        let mut rows = Self { start, run_bytes: size, levels: Box::default() };
        let mut levels: Vec<Level> = Vec::new();
        let mut stride = size;
        for (&dim, range) in shape.iter().zip(ranges).rev() {
            let count = range.end - range.start;
            rows.start += range.start * stride;
            match levels.last_mut() {
                // What is contiguous so far stays so, or the steps of two dimensions are one sequence.
                None if rows.run_bytes == stride => rows.run_bytes = stride * count,
                Some(inner) if inner.count * inner.stride == stride => inner.count *= count,
                _ if count > 1 => levels.push(Level { count, stride }),
                _ => {}
            }
            stride *= dim;
        }
        rows.levels = levels.into_iter().rev().collect();
        Some(rows)
    }

    /// Whether it is a single run.
    pub(super) const fn is_contiguous(&self) -> bool {
        self.levels.is_empty()
    }

    /// Number of runs.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.levels.iter().map(|level| level.count).product()
    }

    /// Bytes of all runs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count() * self.run_bytes
    }

    /// From the first byte to the last.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        let steps: u64 = self.levels.iter().map(|level| (level.count - 1) * level.stride).sum();
        self.start..self.start + steps + self.run_bytes
    }

    /// The same with runs no further apart than `gap_bytes` joined, and what lies between them included.
    pub(super) fn joined(&self, gap_bytes: u64) -> Self {
        // Gaps grow from the innermost level outwards.
        let mut rows = Self { levels: Box::default(), ..*self };
        let mut kept = self.levels.len();
        while let Some(&Level { count, stride }) = self.levels[..kept].last()
            && stride - rows.run_bytes <= gap_bytes
        {
            rows.run_bytes += (count - 1) * stride;
            kept -= 1;
        }
        rows.levels = self.levels[..kept].into();
        rows
    }

    /// The parts of runs within `file`, in order, and where each goes when the runs follow one another from 0 on.
    pub fn within(&self, file: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        (self.first_ending_after(file.start)..self.count())
            .map(|run| (self.position(run), run * self.run_bytes))
            .take_while(move |&(position, _)| position < file.end)
            .map(move |(position, gathered)| {
                let start = position.max(file.start);
                (start..(position + self.run_bytes).min(file.end), gathered + (start - position))
            })
    }

    /// Where the bytes of runs within `file` go when the runs follow one another from 0 on.
    #[must_use]
    pub fn gathered(&self, file: &Range<u64>) -> Range<u64> {
        self.gathered_before(file.start)..self.gathered_before(file.end)
    }

    fn gathered_before(&self, at: u64) -> u64 {
        let run = self.first_ending_after(at);
        let into = if run < self.count() { at.saturating_sub(self.position(run)) } else { 0 };
        run * self.run_bytes + into
    }

    /// The number of the first run with bytes at or after `at`.
    fn first_ending_after(&self, at: u64) -> u64 {
        let mut rest = at.saturating_sub(self.start);
        let mut run = 0;
        for level in &self.levels {
            let step = (rest / level.stride).min(level.count - 1);
            rest -= step * level.stride;
            run = run * level.count + step;
        }
        run + u64::from(rest >= self.run_bytes)
    }

    /// The first byte of a run.
    fn position(&self, mut run: u64) -> u64 {
        let mut position = self.start;
        for level in self.levels.iter().rev() {
            position += run % level.count * level.stride;
            run /= level.count;
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The offsets of the wanted bytes, one by one.
    fn listed(start: u64, size: u64, shape: &[u64], ranges: &[Range<u64>]) -> Vec<u64> {
        let mut offsets = vec![0];
        for (&dim, range) in shape.iter().zip(ranges) {
            let index = |offset: &u64| range.clone().map(|index| offset * dim + index).collect::<Vec<_>>();
            offsets = offsets.iter().flat_map(index).collect();
        }
        let bytes = |element: u64| start + element * size..start + (element + 1) * size;
        offsets.into_iter().flat_map(bytes).collect()
    }

    fn slices() -> impl Strategy<Value = (Vec<u64>, Vec<Range<u64>>)> {
        let dim = (1_u64..6).prop_flat_map(|size| (Just(size), 0..=size, 0..=size));
        prop::collection::vec(dim, 0..5).prop_map(|dims| {
            let ranges = dims.iter().map(|&(_, one, other)| one.min(other)..one.max(other)).collect();
            (dims.into_iter().map(|(size, ..)| size).collect(), ranges)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn runs_are_the_bytes_of_the_slice((shape, ranges) in slices(), start in 0_u64..9, size in 1_u64..4) {
            let expected = listed(start, size, &shape, &ranges);
            let Some(rows) = Rows::new(start, size, &shape, &ranges) else {
                prop_assert!(expected.is_empty());
                return Ok(());
            };
            let runs: Vec<_> = rows.within(0..u64::MAX).collect();
            prop_assert_eq!(runs.len() as u64, rows.count());
            prop_assert!(runs.windows(2).all(|pair| pair[0].0.end < pair[1].0.start), "runs are as long as can be");
            prop_assert_eq!(rows.span(), expected[0]..expected[expected.len() - 1] + 1);
            let bytes: Vec<u64> = runs.into_iter().flat_map(|(file, _)| file).collect();
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn parts_of_the_file_find_their_place(
            (shape, ranges) in slices(),
            one in 0_u64..2000,
            other in 0_u64..2000,
        ) {
            let expected = listed(5, 2, &shape, &ranges);
            let Some(rows) = Rows::new(5, 2, &shape, &ranges) else { return Ok(()) };
            let file = one.min(other)..one.max(other);
            let inside = expected.iter().enumerate().filter(|(_, at)| file.contains(at));
            let places: Vec<(u64, u64)> = inside.map(|(place, &at)| (at, place as u64)).collect();
            let found = rows.within(file.clone());
            let found: Vec<_> = found.flat_map(|(file, to)| file.zip(to..)).collect();
            prop_assert_eq!(&found, &places);
            let gathered = rows.gathered(&file);
            prop_assert_eq!(gathered.end - gathered.start, places.len() as u64);
            prop_assert!(places.first().is_none_or(|&(_, place)| place == gathered.start));
        }

        #[test]
        fn joining_leaves_gaps_wider_than_asked((shape, ranges) in slices(), gap in 0_u64..30) {
            let Some(rows) = Rows::new(0, 1, &shape, &ranges) else { return Ok(()) };
            let mut expected: Vec<Range<u64>> = Vec::new();
            for (run, _) in rows.within(0..u64::MAX) {
                match expected.last_mut() {
                    Some(last) if run.start - last.end <= gap => last.end = run.end,
                    _ => expected.push(run),
                }
            }
            let joined: Vec<_> = rows.joined(gap).within(0..u64::MAX).map(|(run, _)| run).collect();
            prop_assert_eq!(joined, expected);
        }
    }

    #[test]
    fn what_the_shape_does_not_have_is_refused() {
        let refused = |cuts: &[(usize, Range<u64>)]| {
            let cut = |(dim, range): &(usize, Range<u64>)| Cut { tensor: 0, dim: *dim, range: range.clone() };
            let cuts: Vec<_> = cuts.iter().map(cut).collect();
            apply("w", &[3, 4], cuts.iter()).unwrap_err().to_string()
        };
        assert!(refused(&[(2, 0..1)]).contains("no dimension 2"));
        assert!(refused(&[(1, 2..5)]).contains("no part 2..5"));
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let reversed = 2..1;
        assert!(refused(&[(0, reversed)]).contains("no part 2..1"));
        assert!(refused(&[(0, 0..1), (0, 1..2)]).contains("sliced twice"));
        assert_eq!(apply("w", &[3, 4], std::iter::empty()).unwrap(), [0..3, 0..4]);
    }
}
