//! Whole files through the front door: opened, mapped, read, verified. What loads is what is in the file.
#![no_main]

use std::{fs::File, os::fd::AsRawFd as _, os::unix::fs::FileExt as _, path::PathBuf, sync::OnceLock};

use flashpack::{
    ErrorKind, Progress, Reader,
    load::{self, Options},
    plan::{Ignore, Selection},
    verify::verify,
};
use flashpack_fuzz::to_usize;
use libfuzzer_sys::fuzz_target;

/// A file in memory, and its path.
fn scratch() -> &'static (File, PathBuf) {
    static FILE: OnceLock<(File, PathBuf)> = OnceLock::new();
    FILE.get_or_init(|| {
        let file =
            rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for files");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        (file.into(), path)
    })
}

fuzz_target!(|image: &[u8]| {
    let (file, path) = scratch();
    file.set_len(0).unwrap();
    file.write_all_at(image, 0).unwrap();
    let everything = Ignore::default();
    let reader = match Reader::open(path) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Checksum), "{error}");
            return;
        }
    };
    let is_encoded = reader.index().encoding().is_some(); // the target `frames` compares what such files hold
    for (eager, verify) in [(false, false), (true, false), (true, true), (false, true)] {
        let options = Options { eager: Some(eager), verify: Some(verify), ..Options::default() };
        match load::load(path, Selection::Except(&everything), options, Progress::SILENT) {
            Ok(mut loaded) => {
                for (number, record) in reader.index().records().iter().enumerate() {
                    let range = reader.index().file_range(record);
                    let (start, end) = (to_usize(range.start), to_usize(range.end));
                    let bytes = loaded.to_bytes(number);
                    assert!(is_encoded && bytes.len() == end - start || bytes == image[start..end]);
                }
            }
            Err(error) => {
                assert!(verify || is_encoded);
                refused(error.kind());
            }
        }
    }
    verify(path, None, Progress::SILENT).map_or_else(|error| unverified(error.kind()), drop);
});

/// Sound files fail to load only for want of digests, or for wrong ones.
fn refused(kind: ErrorKind) {
    assert!(matches!(kind, ErrorKind::Unsupported | ErrorKind::Checksum), "{kind:?}");
}

/// They fail to be verified for a signature that does not hold, too.
fn unverified(kind: ErrorKind) {
    assert!(matches!(kind, ErrorKind::Signature | ErrorKind::Checksum), "{kind:?}");
}
