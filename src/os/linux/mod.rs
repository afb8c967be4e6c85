//! What only Linux does.

mod files;
#[cfg(any(not(feature = "remote"), test))]
mod library;
mod memory;
mod new_files;
mod processors;

use std::{fs::File, os::fd::AsRawFd as _, path::PathBuf};

pub(crate) use files::*;
#[cfg(any(not(feature = "remote"), test))]
pub(crate) use library::*;
pub(crate) use memory::*;
pub(crate) use new_files::*;
pub(crate) use processors::*;

/// Where the kernel tells of itself, in the folders `proc` and `sys`.
pub(crate) const KERNEL_FILES: Option<&str> = Some("/");

/// What names an open file, whether it has another name or not.
fn own_link(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
