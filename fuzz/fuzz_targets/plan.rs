//! Any load of any sound file: the plan covers what is wanted, and carried out it gives exactly the file's bytes.
#![no_main]

use arbitrary::Unstructured;
use flashpack::{ErrorKind, Reader, io::memory::MemorySource, plan::Verify};
use flashpack_fuzz::{Wish, expected, image, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((wish, rest)) = Wish::split(data) else {
        return;
    };
    let Ok(image) = image::draw(&mut Unstructured::new(rest)) else {
        return;
    };
    let reader = Reader::new(MemorySource::new(image.clone())).unwrap();
    match load(&reader, &wish) {
        Ok(tensors) => assert_eq!(tensors, expected(reader.index(), &wish, &image)),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(wish.settings().verify == Verify::Everything && reader.index().checksums().is_none());
        }
    }
});
