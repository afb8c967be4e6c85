//! Mistakes in Rust for tests/asan.py, built like src/: who does not report them would report none there.

/// A byte to `at`, wherever that is.
///
/// # Safety
/// None, unless the caller takes care.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn store(memory: *mut u8, at: isize) {
    // SAFETY: as unsound as the caller wants it.
    unsafe { memory.offset(at).write(1) }
}
