//! Which tensors that exist can take what a load shows, and where its bytes go then.

use std::{fmt, ops::Range};

use super::{Place, View};

/// A tensor that a load is to go into, as its owner describes it.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// torch's `ScalarType` number of its elements.
    pub dtype: i32,
    /// Sizes of its dimensions.
    pub sizes: &'a [i64],
    /// Elements from one index of a dimension to the next; as many as sizes, or none where nobody asks.
    pub strides: &'a [i64],
    /// torch's numbers of the kind of device that it is on, and of the device among these.
    pub device: (i32, i32),
    /// Whether it is an ordinary strided tensor, with a storage of its own.
    pub is_dense: bool,
    /// Whether its elements lie row-major, without gaps.
    pub is_contiguous: bool,
    /// Where they are.
    pub address: usize,
}

/// Why a tensor cannot take what a view shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is on another device than the first one.
    Device,
    /// It is sparse, or the like.
    Layout,
    /// It has these sizes, and the file's tensor those.
    Shape(Vec<i64>, Vec<u64>),
    /// It has another dtype.
    Dtype,
    /// Its elements do not lie one behind the other.
    Gaps,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("it is not on the device of the others"),
            Self::Layout => f.write_str("it is sparse or has no storage of its own"),
            Self::Shape(own, wanted) => write!(f, "it has shape {own:?}, the file's {wanted:?}"),
            Self::Dtype => f.write_str("it has another dtype than the file's"),
            Self::Gaps => f.write_str("it is not contiguous"),
        }
    }
}

impl Given<'_> {
    /// What keeps this tensor, which is to be on `device`, from taking what `view` shows: into its memory if the load
    /// goes to memory that is given, else as its new storage.
    #[must_use]
    pub fn misfit(&self, view: &View, device: (i32, i32), place: Place) -> Option<Misfit> {
        let same_sizes = || self.sizes.iter().map(|size| size.cast_unsigned()).eq(view.shape.iter().copied());
        if self.device != device {
            Some(Misfit::Device)
        } else if !self.is_dense {
            Some(Misfit::Layout)
        } else if !same_sizes() {
            Some(Misfit::Shape(self.sizes.to_vec(), view.shape.to_vec()))
        } else if self.dtype != view.dtype as i32 {
            Some(Misfit::Dtype)
        } else {
            (place.is_given() && !self.is_contiguous).then_some(Misfit::Gaps)
        }
    }

    /// The memory from its first element to the end of the last, if each has `size` bytes.
    #[must_use]
    pub fn memory(&self, size: u64) -> Range<usize> {
        if self.sizes.contains(&0) {
            return self.address..self.address;
        }
        let reach =
            |(size, stride): (&i64, &i64)| (size.unsigned_abs() - 1).saturating_mul(stride.unsigned_abs());
        let last = self.sizes.iter().zip(self.strides).map(reach).fold(0, u64::saturating_add);
        let bytes = last.saturating_add(1).saturating_mul(size);
        self.address..self.address.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// The first of `given`, one for each of `views`, that does not fit, and why.
pub fn first_misfit<'a>(
    views: &[View],
    given: impl IntoIterator<Item = Given<'a>>,
    place: Place,
) -> Option<(usize, Misfit)> {
    let mut device = None;
    let misfit = |(number, (view, given)): (usize, (&View, Given<'_>))| {
        let device = *device.get_or_insert(given.device);
        Some((number, given.misfit(view, device, place)?))
    };
    views.iter().zip(given).enumerate().find_map(misfit)
}

/// How memory of tensors that fit is filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    /// For each view the memory that is read into: none for one that shows the bytes of an earlier one.
    pub read: Vec<Range<usize>>,
    /// The views whose tensors get a copy of what is read for the first that shows the same bytes.
    pub copied: Vec<usize>,
}

impl Filling {
    /// Fills the memory that begins at `addresses`, of each view's own bytes. `None` if two of them share memory, and
    /// not because they are one tensor, of the same bytes of the file.
    #[must_use]
    pub fn new(views: &[View], addresses: &[usize]) -> Option<Self> {
        let memory = |number: usize| {
            let bytes = usize::try_from(views[number].bytes()).unwrap_or(usize::MAX);
            addresses[number]..addresses[number].saturating_add(bytes)
        };
        let mut filling = Self::default();
        let mut distinct = Vec::with_capacity(views.len());
        for (number, view) in views.iter().enumerate() {
            let is_first = view.same_as == number;
            let is_same = !is_first && addresses[number] == addresses[view.same_as];
            filling.read.push(if is_first { memory(number) } else { 0..0 });
            distinct.extend((!is_same).then(|| memory(number)));
            filling.copied.extend((!is_first && !is_same).then_some(number));
        }
        (!overlap(distinct)).then_some(filling)
    }
}

/// Whether any two of `ranges` have a byte in common.
#[must_use]
pub fn overlap(mut ranges: Vec<Range<usize>>) -> bool {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.windows(2).any(|pair| pair[1].start < pair[0].end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DType;

    const CPU: (i32, i32) = (0, -1);

    fn view(sizes: &[u64], same_as: usize) -> View {
        View { source: 0, dtype: DType::Float32, memory: 0, offset: 0, shape: sizes.into(), same_as }
    }

    fn given(sizes: &[i64]) -> Given<'_> {
        let dtype = DType::Float32 as i32;
        Given { dtype, sizes, strides: &[], device: CPU, is_dense: true, is_contiguous: true, address: 64 }
    }

    #[test]
    fn memory_reaches_to_the_last_element() {
        let memory = |sizes, strides| Given { strides, ..given(sizes) }.memory(4);
        assert_eq!(memory(&[2, 3], &[3, 1]), 64..88);
        assert_eq!(memory(&[2, 3], &[1, 2]), 64..88, "transposed");
        assert_eq!(memory(&[2, 3], &[10, 1]), 64..64 + 4 * 13, "columns of a wider one");
        assert_eq!(memory(&[5, 3], &[0, 1]), 64..76, "expanded");
        assert_eq!((memory(&[], &[]), memory(&[4, 0], &[1, 1])), (64..68, 64..64));
        assert_eq!(memory(&[i64::MAX, i64::MAX], &[i64::MAX, 1]).end, usize::MAX);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let fits = given(&[2, 3]);
        let misfit = |given: Given<'_>, place| given.misfit(&view(&[2, 3], 0), CPU, place);
        for place in [Place::Host, Place::GivenHost] {
            assert_eq!(misfit(fits, place), None);
            assert_eq!(misfit(Given { device: (1, 0), ..fits }, place), Some(Misfit::Device));
            assert_eq!(misfit(Given { is_dense: false, ..fits }, place), Some(Misfit::Layout));
            assert_eq!(misfit(Given { dtype: 7, ..fits }, place), Some(Misfit::Dtype));
            for sizes in [&[3, 2][..], &[2, 3, 1], &[6], &[], &[2, -3]] {
                let shape = Misfit::Shape(sizes.to_vec(), vec![2, 3]);
                assert_eq!(misfit(Given { sizes, ..fits }, place), Some(shape));
            }
        }
        let strided = Given { is_contiguous: false, ..fits };
        assert_eq!(misfit(strided, Place::Host), None, "a new storage has no gaps");
        assert_eq!(misfit(strided, Place::GivenHost), Some(Misfit::Gaps));
    }

    #[test]
    fn the_first_that_does_not_fit_is_told() {
        let views = [view(&[2], 0), view(&[3], 1), view(&[4], 2)];
        let fitting = [given(&[2]), given(&[3]), given(&[4])];
        assert_eq!(first_misfit(&views, fitting, Place::GivenHost), None);
        let [one, mut other, mut last] = fitting;
        last.dtype = 7;
        assert_eq!(first_misfit(&views, [one, other, last], Place::GivenHost), Some((2, Misfit::Dtype)));
        other.device = (1, 0);
        assert_eq!(first_misfit(&views, [one, other, last], Place::GivenHost), Some((1, Misfit::Device)));
        let message = Misfit::Shape(vec![2], vec![3]).to_string();
        assert_eq!(message, "it has shape [2], the file's [3]");
    }

    #[test]
    fn tied_views_are_read_once() {
        let views = [view(&[4], 0), view(&[4], 0), view(&[0], 2)];
        let fill = |addresses: [usize; 3]| Filling::new(&views, &addresses);
        let apart = fill([64, 80, 64]).unwrap();
        assert_eq!((apart.read, apart.copied), (vec![64..80, 0..0, 64..64], vec![1]));
        let one = fill([64, 64, 64]).unwrap();
        assert_eq!((&one.read[..2], one.copied), (&[64..80, 0..0][..], vec![]));
        assert_eq!(fill([64, 79, 64]), None, "they share memory in another way");
    }

    #[test]
    fn memory_that_two_views_share_is_none() {
        let views = [view(&[4], 0), view(&[4], 1)];
        assert!(Filling::new(&views, &[0, 16]).is_some());
        assert!(Filling::new(&views, &[16, 0]).is_some());
        for addresses in [[0, 0], [0, 15], [15, 0]] {
            assert_eq!(Filling::new(&views, &addresses), None, "{addresses:?}");
        }
    }
}
