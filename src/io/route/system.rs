//! What lies below a file, as far as reads of it care.

use crate::{
    io::FileSource,
    os::{self, FileSystem},
    plan::DIRECT_ALIGN_BYTES,
};

impl FileSystem {
    /// That of `file`; a disk, if the system does not say.
    #[must_use]
    pub fn of(file: &FileSource) -> Self {
        file.file().map_or(Self::Local, |file| os::file_system(&file))
    }

    /// Whether the page cache may hold pages of it that nobody can see.
    pub(super) const fn has_hidden_pages(self) -> bool {
        matches!(self, Self::Overlay | Self::Remote)
    }
}

/// Whether `file` can be read past the page cache in units of [`DIRECT_ALIGN_BYTES`]; `None` if the system does not tell.
pub(super) fn takes_direct_reads(file: &FileSource) -> Option<bool> {
    Some(os::direct_units(&*file.file().ok()?)?.into_iter().all(fits_units))
}

/// Whether multiples of the unit are multiples of `align`; 0 stands for no direct reads at all.
fn fits_units(align: u32) -> bool {
    align != 0 && DIRECT_ALIGN_BYTES.is_multiple_of(u64::from(align))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_direct_reads_are_multiples_of_what_the_file_system_asks_for() {
        for (align, fits) in [(0, false), (1, true), (512, true), (4096, true), (8192, false), (1000, false)]
        {
            assert_eq!(fits_units(align), fits, "{align}");
        }
    }
}
