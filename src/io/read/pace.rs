//! How far reading ahead of a mapping may go.

use std::{collections::VecDeque, ops::Range, sync::Weak, thread, time::Duration};

use crate::os::PageMap;

/// How long to wait before looking again whether more was touched: short at first, then longer.
const NAPS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// Windows that are looked at to find the last one that was touched, however many there are.
const LOOKS: usize = 32;

/// Part of a mapping.
pub(super) trait Window {
    /// Its bytes, counted from the mapping's first.
    fn place(&self) -> Range<u64>;
}

/// The windows of a mapping, each when it is no further ahead of what is touched than memory allows; none once the mapping
/// is gone.
pub(super) struct Paced<I> {
    windows: I,
    ahead: Ahead,
    mapping: Weak<()>,
}

impl<I> Paced<I> {
    pub(super) const fn new(windows: I, ahead: Ahead, mapping: Weak<()>) -> Self {
        Self { windows, ahead, mapping }
    }
}

impl<I: Iterator<Item: Window>> Iterator for Paced<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let window = self.windows.next()?;
        let (place, mut nap) = (window.place(), NAPS.0);
        while self.mapping.strong_count() > 0 {
            if self.ahead.admits(&place) {
                return Some(window);
            }
            if !self.ahead.can_tell() {
                return None;
            }
            thread::sleep(nap);
            nap = (2 * nap).min(NAPS.1);
        }
        None
    }
}

/// What was read of a mapping and not touched yet.
pub(super) struct Ahead {
    /// The most bytes of that.
    budget: u64,
    bytes: u64,
    /// The windows, each as its last byte and its length.
    windows: VecDeque<(u64, u64)>,
    touched: Touched,
}

impl Ahead {
    /// Nothing yet; at most `budget` bytes.
    pub(super) const fn new(budget: u64, touched: Touched) -> Self {
        Self { budget, bytes: 0, windows: VecDeque::new(), touched }
    }

    /// Whether the window at `place` may be read now, which it is then.
    fn admits(&mut self, place: &Range<u64>) -> bool {
        let bytes = place.end - place.start;
        if self.bytes + bytes > self.budget {
            self.forget_touched();
        }
        // One window is always under way, however little memory there is.
        let fits = self.bytes + bytes <= self.budget || self.windows.is_empty();
        if fits {
            self.bytes += bytes;
            self.windows.push_back((place.end.saturating_sub(1), bytes));
        }
        fits
    }

    /// Drops the windows up to the last one that was touched. Those before it were passed: pages that were touched may be gone
    /// again, and then look as if they never were.
    fn forget_touched(&mut self) {
        let step = self.windows.len().div_ceil(LOOKS).max(1);
        let mut looked_at = (0..self.windows.len()).rev().step_by(step);
        let Some(last) = looked_at.find(|&number| self.touched.contains(self.windows[number].0)) else {
            return;
        };
        self.bytes -= self.windows.drain(..=last).map(|(_, bytes)| bytes).sum::<u64>();
    }

    /// Whether windows ever become touched.
    const fn can_tell(&self) -> bool {
        self.touched.pages.is_some()
    }
}

/// Which pages of a mapping the process has touched.
pub(super) struct Touched {
    /// Address of the mapping's first byte.
    start: u64,
    /// None where the kernel does not tell: then nothing counts as touched.
    pages: Option<PageMap>,
}

impl Touched {
    /// Of the mapping at the address `start`.
    pub(super) fn of(start: usize) -> Self {
        Self { start: start as u64, pages: PageMap::open() }
    }

    /// Whether the page of byte `offset` was touched.
    fn contains(&self, offset: u64) -> bool {
        self.pages.as_ref().is_some_and(|pages| pages.is_touched(self.start + offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memmap2::MmapMut;

    use super::*;
    use crate::io::Pages;

    struct Piece(Range<u64>);

    impl Window for Piece {
        fn place(&self) -> Range<u64> {
            self.0.clone()
        }
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "nobody tells what was touched")]
    fn windows_wait_until_those_before_are_touched() {
        let page = Pages::here().bytes;
        let mut map = MmapMut::map_anon(8 * page).unwrap();
        let place = |number: usize| (number * page) as u64..((number + 1) * page) as u64;
        let mut ahead = Ahead::new(3 * page as u64, Touched::of(map.as_ptr().addr()));
        let admitted =
            |ahead: &mut Ahead| (0..8).filter(|&number| ahead.admits(&place(number))).collect::<Vec<_>>();
        assert_eq!(admitted(&mut ahead), [0, 1, 2]);
        assert!(!ahead.admits(&place(3)));
        map[page] = 1; // the second: the first counts as passed
        assert!(ahead.admits(&place(3)) && ahead.admits(&place(4)));
        assert!(!ahead.admits(&place(5)));
        assert!(
            Ahead::new(0, Touched { start: 0, pages: None }).admits(&place(0)),
            "one is always under way"
        );
    }

    #[test]
    fn nothing_is_read_once_the_mapping_is_gone() {
        let (mapping, page) = (Arc::new(()), Pages::here().bytes as u64);
        let windows = (0..3).map(|number| Piece(number * page..(number + 1) * page));
        let touched = Touched { start: 0, pages: None };
        let mut paced = Paced::new(windows, Ahead::new(8 * page, touched), Arc::downgrade(&mapping));
        assert!(paced.next().is_some());
        drop(mapping);
        assert!(paced.next().is_none());
    }
}
