//! File to file, without tensors in between: safetensors to FlashPack and back.

mod cast;
mod export;
mod import;

pub use export::to_safetensors;
pub use import::{Request, from_safetensors};

/// What a conversion made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Tensors in the new file.
    pub tensors: usize,
    /// Its length in bytes.
    pub bytes: u64,
}
