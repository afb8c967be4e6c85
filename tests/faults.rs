//! What goes wrong while reading: the error says so, whatever the number of threads.

mod common;

use std::sync::Arc;

use common::{check_source, load, packed_by_default, settings, tensor};
use flashpack::{
    ErrorKind, Reader,
    format::{DType, Index},
    io::{
        Asked, FileSource, Files, Input, Mapping, Samples,
        file::Shelf,
        memory::{Faults, MemorySource},
    },
    plan::{Ignore, Place, Selection, Verify},
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
    let everything = settings(Place::Host, Verify::Never, threads, 4096);
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
    let everything = settings(Place::Host, Verify::Whole, 2, 4096);
    let error = load(&reader, Selection::Except(&Ignore::default()), everything).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("ends at byte 5000"), "{error}");
}

#[test]
fn sources_keep_their_contract() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes");
    let bytes = model();
    std::fs::write(&path, &bytes).unwrap();
    let open = || FileSource::open(&path).unwrap();
    check_source(&MemorySource::new(bytes.clone()), &bytes);
    check_source(&open(), &bytes);
    check_source(&open().on_shelf(Some(&Arc::new(Shelf::new(1)))), &bytes);
    check_source(&Input::Buffered(open()).choose(Asked::all(Some(true)), &Samples::default()).0, &bytes);
    let index = Reader::open(&path).unwrap().into_parts().1;
    check_source(&Files::new(&path, vec![Input::Buffered(open())], &index), &bytes);
}

#[test]
fn joined_files_keep_the_contract_of_sources() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [70_000, 5, 0, 1_500_000];
    let paths: Vec<_> = (0..sizes.len()).map(|number| folder.path().join(number.to_string())).collect();
    for (path, size) in paths.iter().zip(sizes) {
        let name = path.file_name().unwrap().to_str().unwrap();
        std::fs::write(path, packed_by_default(&[tensor(name, DType::Uint8, &[size])])).unwrap();
    }
    for page_bytes in [4 << 10, 64 << 10, 2 << 20] {
        let opened = paths.iter().map(|path| Reader::open(path).unwrap().into_parts());
        let (files, indices): (Vec<_>, Vec<_>) =
            opened.map(|(file, index, _)| (Input::Buffered(file), (String::new(), index))).unzip();
        let index = Index::join(indices, page_bytes).unwrap();
        let mut expected = vec![0; usize::try_from(index.payload_bytes()).unwrap()];
        for (path, part) in paths.iter().zip(index.parts()) {
            assert!(part.range().start.is_multiple_of(page_bytes));
            let place =
                usize::try_from(part.range().start).unwrap()..usize::try_from(part.range().end).unwrap();
            let bytes = std::fs::read(path).unwrap();
            expected[place.clone()].copy_from_slice(&bytes[..place.len()]);
        }
        let files = Files::new(folder.path(), files, &index);
        check_source(&files, &expected);
        let map = Mapping::new(&files).unwrap();
        // SAFETY: the mapping lives as long as the slice, and nobody writes to it.
        let mapped = unsafe { std::slice::from_raw_parts(map.data(), map.len()) };
        for part in index.parts() {
            let place =
                usize::try_from(part.range().start).unwrap()..usize::try_from(part.range().end).unwrap();
            assert!(mapped[place.clone()] == expected[place], "where pages have {page_bytes} bytes");
        }
        check_source(&files.choose(Asked::all(Some(true))).unwrap().0, &expected);
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
