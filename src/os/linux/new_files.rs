//! New files: such as have no name until they are put in place.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FallocateFlags, OFlags},
    io::Errno,
};

use super::own_link;
use crate::os::{errno, is_any_of};

/// A new file in `folder` that has no name; none if its file system has no such files, or they get the wrong mode.
pub(crate) fn create_nameless(folder: &Path, mode: u32) -> io::Result<Option<File>> {
    const REFUSALS: [i32; 4] = [errno::EOPNOTSUPP, errno::EISDIR, errno::EINVAL, errno::ENOSYS];
    let nameless = OFlags::TMPFILE.bits().cast_signed();
    match OpenOptions::new().read(true).write(true).mode(mode).custom_flags(nameless).open(folder) {
        Ok(file) if fs::symlink_metadata(own_link(&file)).is_ok() && honours_umask(&file, mode)? => {
            Ok(Some(file))
        }
        Err(error) if !is_any_of(&error, &REFUSALS) => Err(error),
        _ => Ok(None),
    }
}

/// Whether the file has the mode that one with a name would have: before Linux 6.0, `O_TMPFILE` leaves the umask out on
/// some file systems.
fn honours_umask(file: &File, mode: u32) -> io::Result<bool> {
    let others = mode & 0o077;
    if others == 0 || file.metadata()?.permissions().mode() & 0o077 != others {
        return Ok(true);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok());
    Ok(umask.is_some_and(|umask| umask & others == 0))
}

/// Gives `file` the name `name`, which nothing has yet.
pub(crate) fn link(file: &File, name: &Path) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, own_link(file), CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Reserves disk blocks for a new file, and the length: several direct writes run at a time only within it. File systems
/// that cannot reserve are written to as they are.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(errno.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_file_that_the_umask_did_not_reach_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("usual");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o666).open(name).unwrap();
        let usual = file.metadata().unwrap().permissions().mode();
        assert!(honours_umask(&file, 0o666).unwrap());
        file.set_permissions(Permissions::from_mode(0o666)).unwrap();
        assert_eq!(honours_umask(&file, 0o666).unwrap(), usual & 0o066 == 0o066);
        assert!(honours_umask(&file, 0o600).unwrap(), "nothing was to be masked");
    }
}
