//! What goes wrong while reading: the error says so, whatever the number of threads.

mod common;

use common::{load, packed_by_default, settings, tensor};
use flashpack::{
    ErrorKind, Reader,
    format::DType,
    io::{
        FileSource, Source,
        memory::{Faults, MemorySource},
    },
    plan::{Ignore, Mode, Selection, Verify},
};

fn model() -> Vec<u8> {
    packed_by_default(&[
        tensor("large", DType::Float32, &[300, 100]),
        tensor("medium", DType::Bfloat16, &[77, 33]),
        tensor("small", DType::Uint8, &[5]),
    ])
}

/// Opens without faults, then reads everything in pieces of 4 KiB with `faults`.
fn read_with(faults: Faults, threads: usize) -> flashpack::Result<Vec<(String, Vec<u8>)>> {
    // The footer takes one read of its own, which the n-th read counts.
    let reader = Reader::new(MemorySource::with_faults(model(), faults))?;
    let everything = settings(Mode::Eager, Verify::Never, threads, 4096);
    load(&reader, Selection::Except(&Ignore::default()), everything)
}

#[test]
fn short_and_interrupted_reads_are_retried() {
    let sound = read_with(Faults::default(), 1).unwrap();
    for threads in [1, 4] {
        let faults = Faults { short_reads: 7, interrupt_every: 2, ..Faults::default() };
        assert_eq!(read_with(faults, threads).unwrap(), sound);
    }
}

#[test]
fn an_error_at_any_read_is_the_loads_error() {
    let reads = 1 + (model().len() as u64).div_ceil(4096);
    assert!(reads > 30);
    for fail_read in 1..reads {
        for threads in [1, 4] {
            let error = read_with(Faults { fail_read, ..Faults::default() }, threads).unwrap_err();
            assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, Some(5)), "read {fail_read}: {error}");
        }
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.flashpack");
    std::fs::write(&path, model()).unwrap();
    let reader = Reader::open(&path).unwrap();
    let len = 5000;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    let everything = settings(Mode::Eager, Verify::Whole, 2, 4096);
    let error = load(&reader, Selection::Except(&Ignore::default()), everything).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("ends at byte 5000"), "{error}");
}

#[test]
fn sources_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes");
    let bytes = model();
    std::fs::write(&path, &bytes).unwrap();
    let (file, memory) = (FileSource::open(&path).unwrap(), MemorySource::new(bytes.clone()));
    assert_eq!(file.len(), memory.len());
    for (offset, length) in [(0, 1), (0, bytes.len()), (4095, 2), (bytes.len() - 1, 1), (bytes.len(), 0)] {
        let mut from = [vec![0; length], vec![1; length]];
        file.read_exact_at(&mut from[0], offset as u64).unwrap();
        memory.read_exact_at(&mut from[1], offset as u64).unwrap();
        assert_eq!(from[0], bytes[offset..offset + length]);
        assert_eq!(from[0], from[1]);
    }
    for source in [&file as &dyn Source, &memory] {
        let error = source.read_exact_at(&mut [0; 2], bytes.len() as u64 - 1).unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let cases = [
        (folder.path().join("missing"), Some(2), "cannot open"),
        (folder.path().to_owned(), Some(21), "directory"),
        (fifo, None, "not a regular file"),
        ("/dev/null".into(), None, "not a regular file"),
    ];
    for (path, errno, words) in cases {
        let error = Reader::open(&path).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Io, errno), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}
