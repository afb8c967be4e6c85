//! Pages, whose sizes differ from machine to machine: 4, 16 or 64 KiB, huge ones 1 MiB to 512 MiB.

use std::sync::OnceLock;

use crate::os;

/// Huge pages of this size at the most are used: a larger one takes more memory than it saves time.
const MAX_HUGE_BYTES: usize = 2 << 20;

/// The page sizes of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of a page: where mappings begin.
    pub bytes: usize,
    /// Bytes of a huge page; none if there are none, or only such as are too large to be of use.
    pub huge_bytes: Option<usize>,
}

impl Pages {
    /// Those of this machine.
    #[must_use]
    pub fn here() -> Self {
        static HERE: OnceLock<Pages> = OnceLock::new();
        *HERE.get_or_init(|| Self::new(os::page_bytes(), os::huge_page_bytes()))
    }

    /// Pages of `bytes`, and huge ones of `huge_bytes` if the kernel has any.
    #[must_use]
    pub fn new(bytes: usize, huge_bytes: Option<usize>) -> Self {
        let is_useful = |huge: &usize| huge.is_power_of_two() && (bytes..=MAX_HUGE_BYTES).contains(huge);
        Self { bytes, huge_bytes: huge_bytes.filter(is_useful) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_used_up_to_2_mib() {
        assert_eq!(Pages::new(4 << 10, Some(2 << 20)).huge_bytes, Some(2 << 20));
        for (bytes, huge) in
            [(16 << 10, Some(32 << 20)), (64 << 10, Some(512 << 20)), (4 << 10, None), (4 << 10, Some(0))]
        {
            assert_eq!(Pages::new(bytes, huge), Pages { bytes, huge_bytes: None });
        }
    }

    #[test]
    fn pages_here_are_those_of_the_kernel() {
        assert_eq!(Pages::here().bytes, os::page_bytes());
    }
}
