//! Footers: JSON, and eight bytes that say where in the file it starts. What is accepted keeps its promises, and means
//! the same when it is written and read again; what is refused is refused as a damaged file.
#![no_main]

use flashpack::{
    ErrorKind,
    format::{FORMAT_V3, Index, TRAILER_BYTES, footer},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((json, offset)) = data.split_last_chunk::<8>() else {
        return;
    };
    let offset = u64::from_le_bytes(*offset);
    if let Some(trailer) = data.last_chunk::<TRAILER_BYTES>() {
        locate(offset, trailer);
    }
    assert_eq!(
        footer::locate(data.len() as u64 + TRAILER_BYTES as u64, &footer::trailer(json)).unwrap(),
        (8, json.len())
    );
    match footer::parse(json, offset) {
        Ok(index) => {
            check(&index, offset);
            round_trip(&index, json);
        }
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Checksum), "{error}"),
    }
});

fn locate(file_bytes: u64, trailer: &[u8; TRAILER_BYTES]) {
    let mut trailer = *trailer;
    trailer[8..].copy_from_slice(&flashpack::format::MAGIC);
    if let Ok((offset, bytes)) = footer::locate(file_bytes, &trailer) {
        assert_eq!(offset.checked_add((bytes + TRAILER_BYTES) as u64), Some(file_bytes));
    }
}

/// The promises of [`Index`], looked at one by one.
fn check(index: &Index, footer_offset: u64) {
    assert!(index.parts()[0].stored_bytes() <= footer_offset);
    for block in index.blocks() {
        assert!(block.file_range().end <= index.payload_bytes());
    }
    for (number, record) in index.records().iter().enumerate() {
        let block = &index.blocks()[record.block()];
        let file = index.file_range(record);
        assert_eq!(index.find(record.name()), Some(number));
        assert_eq!(record.elems(), record.shape().iter().product::<u64>());
        assert_eq!(file.end - file.start, record.elems() * block.dtype().size());
        if record.elems() > 0 {
            assert!(block.file_range().start <= file.start && file.end <= block.file_range().end);
            if index.align_bytes() > 0 && index.align_bytes().is_multiple_of(block.dtype().size()) {
                assert!((file.start - block.offset()).is_multiple_of(index.align_bytes()));
            }
        }
    }
}

/// One block that does not start the file, or does not fill it, is written as another format than it was read from.
fn round_trip(index: &Index, json: &[u8]) {
    let text = footer::render(index);
    let whole = index.blocks()[0].file_range() == (0..index.payload_bytes());
    if index.blocks().len() > 1 || whole || index.encoding().is_some() {
        let again = footer::parse(text.as_bytes(), index.parts()[0].stored_bytes());
        assert_eq!(again.unwrap(), *index, "{} became {text}", json.escape_ascii());
    } else {
        assert!(text.contains(FORMAT_V3));
    }
}
