//! Any load of any file from a source that fails: it ends as it would without failures, or with the source's error.
#![no_main]

use flashpack::{ErrorKind, Reader, Result, io::memory::MemorySource};
use flashpack_fuzz::{Wish, expected, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((wish, image)) = Wish::split(data) else {
        return;
    };
    if Reader::new(MemorySource::new(image.to_vec())).is_ok_and(|it| it.index().encoding().is_some()) {
        return; // a source gives frames: io::Files, which decodes them, is what the target `frames` reads through
    }
    let sound = attempt(MemorySource::new(image.to_vec()), &wish);
    let faults = wish.faults(image.len());
    let faulty = attempt(MemorySource::with_faults(image.to_vec(), faults), &wish);
    if let Ok(tensors) = &sound {
        let reader = Reader::new(MemorySource::new(image.to_vec())).unwrap();
        assert_eq!(*tensors, expected(reader.index(), &wish, image));
    }
    match (sound, faulty) {
        (Ok(sound), Ok(faulty)) if faults.truncate_at.is_none() && faults.fail_read == 0 => {
            assert_eq!(sound, faulty);
        }
        // A mapping of a source that ends early cannot be read here; what was read into memory is what it was.
        (Ok(sound), Ok(faulty)) => {
            assert!(sound.iter().zip(&faulty).all(|(one, other)| other.is_empty() || one == other));
        }
        (_, Err(error)) if error.kind() == ErrorKind::Io => {
            assert!(faults.truncate_at.is_some() || faults.fail_read > 0, "{error}");
        }
        (Err(sound), Err(faulty)) => assert_eq!(sound.kind(), faulty.kind(), "{sound}; {faulty}"),
        (sound, faulty) => panic!("{sound:?} became {faulty:?}"),
    }
});

fn attempt(source: MemorySource, wish: &Wish) -> Result<Vec<Vec<u8>>> {
    load(&Reader::new(source)?, wish)
}
