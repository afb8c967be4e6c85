//! The file format: bytes in, values out. Nothing here opens a file, allocates a tensor or knows a device.
//!
//! A file is payload, footer JSON, footer length (`u64`, little endian), [`MAGIC`]. [`footer`] reads the JSON
//! and turns it once into an [`Index`], [`layout`] makes the index of a new file, [`checksum`] its digests,
//! [`signature`] is what vouches for those.
//! [`foreign`] recognises what is something else.
//! [`mod@safetensors`] makes an index of that format's header, [`join`] one of several, [`shards`] reads which files
//! belong together.

pub mod checksum;
mod dtype;
pub mod footer;
pub mod foreign;
mod index;
pub mod join;
pub mod layout;
mod names;
pub mod safetensors;
mod shape;
pub mod shards;
pub mod signature;

pub use dtype::DType;
pub use index::{Checksums, Encoding, Frame, Index, Macroblock, Part, Record};
pub use names::Fit;
pub use shape::Shape;
pub use signature::{Seal, Signature};

/// The last eight bytes of every FlashPack file.
pub const MAGIC: [u8; 8] = *b"FLASHPK\0";
/// Bytes after the footer's JSON: its length and [`MAGIC`].
pub const TRAILER_BYTES: usize = 16;
/// `format` of a file with one macroblock.
pub const FORMAT_V3: &str = "flashpack_v3";
/// `format` of a file with several macroblocks.
pub const FORMAT_V4: &str = "flashpack_v4";
/// `format` of a file with several macroblocks, or one, whose payload is [encoded](Encoding).
pub const FORMAT_V5: &str = "flashpack_v5";
/// Alignment of a tensor's start within its macroblock unless the writer is told otherwise (flashpack 0.4.5's).
pub const DEFAULT_ALIGN_BYTES: u64 = 128;
/// Macroblocks start at multiples of this, the strictest unit that direct I/O and paging ask for.
pub const BLOCK_ALIGN_BYTES: u64 = 4096;
/// Largest footer a reader accepts: room for a million records, far below what would hurt to allocate.
pub const MAX_FOOTER_BYTES: u64 = 256 << 20;
