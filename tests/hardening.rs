//! Numbers out of files that are too large for what they are used for: errors, not panics or aborts. What fuzzing found
//! is here, too.

mod common;

use common::{packed_by_default, settings, tensor};
use flashpack::{
    ErrorKind, Reader,
    format::{DType, MAGIC, TRAILER_BYTES, checksum, footer},
    io::memory::MemorySource,
    plan::{Ignore, Place, ReadPlan, Selection, Verify},
};

fn trailer(length: u64) -> [u8; TRAILER_BYTES] {
    [length.to_le_bytes(), MAGIC].concat().try_into().unwrap()
}

/// Found by the fuzz target `footer`: 256 MiB were added to where the footer starts.
#[test]
fn a_footer_at_the_end_of_the_largest_file_is_located() {
    let last = u64::MAX - TRAILER_BYTES as u64;
    assert_eq!(footer::locate(u64::MAX, &trailer(5)).unwrap(), (last - 5, 5));
    for length in [(256 << 20) + 1, last, u64::MAX] {
        assert_eq!(footer::locate(u64::MAX, &trailer(length)).unwrap_err().kind(), ErrorKind::Format);
    }
}

/// 2^60 elements that lie nowhere: the footer of a file of holes is sound.
#[test]
fn a_plan_too_large_for_memory_is_an_error() {
    let json = r#"{"format": "flashpack_v3", "target_dtype": "uint8", "align_bytes": 0,
        "total_elems": 1152921504606846976,
        "index": [{"name": "hole", "shape": [1152921504606846976], "offset": 0, "length": 1152921504606846976}]}"#;
    let index = footer::parse(json.as_bytes(), 1 << 60).unwrap();
    let everything = Ignore::default();
    for place in [Place::Host, Place::GivenHost, Place::Device, Place::GivenDevice] {
        let settings = settings(place, Verify::Never, 1, 4096);
        let error = ReadPlan::new(&index, Selection::Except(&everything), settings).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory, "{place:?}: {error}");
    }
    let lazy = settings(Place::Mapping, Verify::Never, 1, 4096);
    assert!(ReadPlan::new(&index, Selection::Except(&everything), lazy).unwrap().tasks.is_empty());
}

#[test]
fn digests_of_chunks_too_large_to_stage_are_refused() {
    let image = packed_by_default(&[tensor("x", DType::Float32, &[64])]);
    let reader = Reader::new(MemorySource::new(image)).unwrap();
    for chunk_bytes in [0, 2048, 4097, checksum::MAX_CHUNK_BYTES * 2, 1 << 63] {
        let (sound, wrong) = ("\"chunk_bytes\":1048576", format!("\"chunk_bytes\":{chunk_bytes}"));
        let json = reader.footer().replace(sound, &wrong);
        let error = footer::parse(json.as_bytes(), reader.index().payload_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(
            error.to_string().contains(&format!("chunk_bytes is {chunk_bytes}, not a power of two")),
            "{error}"
        );
    }
}

#[test]
fn chunks_of_no_bytes_are_chunks_of_one() {
    let model = tensor("x", DType::Uint8, &[5]);
    let reader = Reader::new(MemorySource::new(packed_by_default(std::slice::from_ref(&model)))).unwrap();
    let nothing = settings(Place::Host, Verify::Never, 1, 0);
    let loaded = common::load(&reader, Selection::Except(&Ignore::default()), nothing).unwrap();
    assert_eq!(loaded, [("x".to_owned(), model.bytes)]);
}
