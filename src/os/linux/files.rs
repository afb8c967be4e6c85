//! Files: reads past the page cache, advice about it, what it holds, and what lies below it.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    ops::Range,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use rustix::{
    fs::{Advice, AtFlags, OFlags, StatxFlags},
    io::{Errno, ReadWriteFlags},
};

use super::own_link;
use crate::os::FileSystem;

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

/// What `file` lies on; a disk, if the system does not say.
pub(crate) fn file_system(file: &File) -> FileSystem {
    // The type is a signed number of 32 or 64 bits, by processor.
    #[expect(clippy::cast_sign_loss, reason = "only the lower half counts")]
    rustix::fs::fstatfs(file).map_or(FileSystem::Local, |system| of_magic(system.f_type as u64 & 0xffff_ffff))
}

fn of_magic(magic: u64) -> FileSystem {
    KINDS.iter().find(|(known, _)| *known == magic).map_or(FileSystem::Local, |&(_, kind)| kind)
}

/// What memory and offsets of direct reads of `file` have to be multiples of, 0 if it takes none; `None` if the kernel does
/// not tell, which it does since Linux 6.1, of some file systems.
pub(crate) fn direct_units(file: &File) -> Option<[u32; 2]> {
    let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let is_told = told.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    is_told.then_some([told.stx_dio_mem_align, told.stx_dio_offset_align])
}

/// Opens a file for direct reads, by its path.
pub(crate) fn open_direct(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Opens `file`, which was opened by `path`, once more for direct reads: by its descriptor, which another file's taking the
/// path does not disturb; without /proc by the path.
pub(crate) fn open_again_direct(file: &File, path: &Path) -> io::Result<File> {
    match open_direct(&own_link(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => open_direct(path),
        opened => opened,
    }
}

/// Opens `file` once more for direct writes, unless its file system refuses them.
pub(crate) fn open_to_write_direct(file: &File) -> Option<File> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    File::options().read(true).write(true).custom_flags(direct).open(own_link(file)).ok()
}

/// Reads into `slices`, one after the other, from `offset` in one request.
pub(crate) fn read_vectored_at(file: &File, slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
    Ok(rustix::io::preadv(file, slices, offset)?)
}

/// Whether a read of the byte at `offset` does not wait; `None` if the file system cannot tell.
pub(crate) fn can_be_read_at_once(file: &File, offset: u64) -> Option<bool> {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(_) => Some(true),
        Err(Errno::AGAIN | Errno::INTR) => Some(false),
        Err(_) => None,
    }
}

/// Has the kernel read `range` into the page cache, without waiting. Only advice.
pub(crate) fn will_need(file: &File, range: &Range<u64>) -> io::Result<()> {
    let bytes = NonZeroU64::new(range.end - range.start);
    Ok(rustix::fs::fadvise(file, range.start, bytes, Advice::WillNeed)?)
}

/// Has the kernel read ahead as usual, or no more than it is asked for. Only advice: that it may be refused does not matter.
pub(crate) fn set_read_ahead(file: &File, reads_ahead: bool) {
    let advice = if reads_ahead { Advice::Normal } else { Advice::Random };
    let _ = rustix::fs::fadvise(file, 0, None, advice);
}

/// Asks for a range to be brought to disk, and does not wait: the disk would idle until the final flush. That is only
/// advice; what goes wrong, the flush finds out.
pub(crate) fn start_writeback(file: &File, offset: u64, bytes: u64) {
    // SAFETY: takes a file that is open and three numbers, touches no memory of ours.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset.cast_signed(),
            bytes.cast_signed(),
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
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
            assert_eq!(of_magic(magic), expected, "{magic:x}");
        }
    }

    #[test]
    fn the_two_ways_to_a_file_do_not_share_their_flags() {
        let file = tempfile::tempfile().unwrap();
        let direct = open_to_write_direct(&file);
        let is_direct = |file| rustix::fs::fcntl_getfl(file).unwrap().contains(OFlags::DIRECT);
        assert!(!is_direct(&file) && direct.as_ref().is_none_or(is_direct));
    }
}
