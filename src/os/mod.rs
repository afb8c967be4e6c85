//! What operating systems do, each in its own way. All other code is the same on each of them.
//!
//! Every system offers the functions of two files, with the same signatures:
//!
//! | | Linux | macOS | Windows |
//! | --- | --- | --- | --- |
//! | what all systems do: open, read and write at an offset, know a file again, flush a folder | `unix` | `unix` | `windows` |
//! | what Linux does besides: direct reads, residency, files without names, advice, NUMA, stores | `linux` | `plain` | `plain` |
//!
//! `plain` says what happens instead: files are read through the page cache, written under a temporary name and renamed,
//! and mapped without advice; what cannot be done is an error that says so.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod plain;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::io;

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(not(target_os = "linux"))]
pub(crate) use plain::*;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// Numbers of errors, as C has them on every system.
pub(crate) mod errno {
    #[cfg(any(windows, feature = "remote"))]
    pub(crate) use libc::EACCES;
    pub(crate) use libc::{EBUSY, EINVAL, EIO, EISDIR, ELOOP, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EXDEV};
}

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

/// Whether `error` has one of these numbers.
pub(crate) fn is_any_of(error: &io::Error, errnos: &[i32]) -> bool {
    number_of(error).is_some_and(|number| errnos.contains(&number))
}
