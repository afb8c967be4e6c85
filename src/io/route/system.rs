//! What kind of file system a file lies on.

use rustix::fs::{AtFlags, StatxFlags};

use crate::{io::FileSource, plan::DIRECT_ALIGN_BYTES};

/// What lies below a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Memory: there is nothing to read past the page cache.
    Memory,
    /// As below container images: a disk, which can be read past the page cache, but does not tell what that holds.
    Overlay,
    /// Another machine, or a process: each read waits, but for what the page cache holds.
    Remote,
    /// A disk, with ext4, XFS, btrfs and the like.
    Local,
}

/// Types of file systems, as `statfs` gives them (`linux/magic.h`, and the sources of those that are not in the kernel).
const KINDS: [(u64, FileSystem); 18] = [
    (0x0102_1994, FileSystem::Memory),  // tmpfs
    (0x8584_58f6, FileSystem::Memory),  // ramfs
    (0x794c_7630, FileSystem::Overlay), // overlayfs
    (0x6573_5546, FileSystem::Remote),  // FUSE, virtiofs
    (0x0000_6969, FileSystem::Remote),  // NFS
    (0x0000_517b, FileSystem::Remote),  // SMB
    (0xfe53_4d42, FileSystem::Remote),  // SMB 2
    (0xff53_4d42, FileSystem::Remote),  // CIFS
    (0x00c3_6400, FileSystem::Remote),  // Ceph
    (0x0bd0_0bd0, FileSystem::Remote),  // Lustre
    (0x4750_4653, FileSystem::Remote),  // GPFS
    (0x1983_0326, FileSystem::Remote),  // BeeGFS
    (0x2003_0528, FileSystem::Remote),  // OrangeFS
    (0x0102_1997, FileSystem::Remote),  // 9p
    (0x5346_414f, FileSystem::Remote),  // OpenAFS
    (0x6b41_4653, FileSystem::Remote),  // AFS
    (0x7375_7245, FileSystem::Remote),  // Coda
    (0x786f_4256, FileSystem::Remote),  // vboxsf
];

impl FileSystem {
    /// That of `file`; a disk, if the system does not say.
    #[must_use]
    pub fn of(file: &FileSource) -> Self {
        let system = file.file().and_then(|file| Ok(rustix::fs::fstatfs(&file)?));
        // The type is a signed number of 32 or 64 bits, by processor.
        #[expect(clippy::cast_sign_loss, reason = "only the lower half counts")]
        system.map_or(Self::Local, |system| Self::from_magic(system.f_type as u64 & 0xffff_ffff))
    }

    /// Whether the page cache may hold pages of it that nobody can see.
    pub(super) const fn has_hidden_pages(self) -> bool {
        matches!(self, Self::Overlay | Self::Remote)
    }

    fn from_magic(magic: u64) -> Self {
        KINDS.iter().find(|(known, _)| *known == magic).map_or(Self::Local, |&(_, kind)| kind)
    }
}

/// Whether `file` can be read past the page cache in units of [`DIRECT_ALIGN_BYTES`]; `None` if the kernel does not tell,
/// which it does since Linux 6.1, of some file systems.
pub(super) fn takes_direct_reads(file: &FileSource) -> Option<bool> {
    let file = file.file().ok()?;
    let told = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let is_told = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    is_told.then(|| fits_units(told.stx_dio_mem_align) && fits_units(told.stx_dio_offset_align))
}

/// Whether multiples of the unit are multiples of `align`; 0 stands for no direct reads at all.
fn fits_units(align: u32) -> bool {
    align != 0 && DIRECT_ALIGN_BYTES.is_multiple_of(u64::from(align))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_apart() {
        for (magic, expected) in [
            (0xef53, FileSystem::Local),      // ext4
            (0x5846_5342, FileSystem::Local), // XFS
            (0x9123_683e, FileSystem::Local), // btrfs
            (0x6969, FileSystem::Remote),
            (0x6573_5546, FileSystem::Remote),
            (0x0102_1994, FileSystem::Memory),
            (0x794c_7630, FileSystem::Overlay),
        ] {
            assert_eq!(FileSystem::from_magic(magic), expected, "{magic:x}");
        }
    }

    #[test]
    fn units_of_direct_reads_are_multiples_of_what_the_file_system_asks_for() {
        for (align, fits) in [(0, false), (1, true), (512, true), (4096, true), (8192, false), (1000, false)]
        {
            assert_eq!(fits_units(align), fits, "{align}");
        }
    }
}
