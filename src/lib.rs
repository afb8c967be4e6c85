//! FlashPack: model weights as contiguous, aligned macroblocks with a JSON footer, and the fastest way to load them.
//!
//! Layers: each module uses only those above it, and in its own row those to its left. `tests/layering.rs` reads this table.
//!
//! | module | what |
//! | --- | --- |
//! | `error`, `sync`, `progress`, [`stats`], `options` | what all use: errors, locks, progress, time spent, environment |
//! | [`format`](mod@format) | the file: bytes in, values out; validated once into an [`Index`](format::Index) |
//! | [`plan`] | pure: index and selection to what is read where, and where each tensor lies |
//! | [`io`] | sources of bytes, mappings, the engine that reads what is planned, atomic writes |
//! | [`device`] | memory that loads fill; staging buffers and the transfer engine to devices |
//! | `reader`, [`model`], `opened` | an open file; what a path stands for: one file or several; open models by number |
//! | [`load`], [`pack`], [`sign`](mod@sign), [`verify`](mod@verify), [`convert`], [`explain`](mod@explain) | the jobs, each a short composition of the above |
//! | `capi`, `bridge` | the C interface (feature `capi`) and the cxx bridge to torch (feature `torch`) |
//! | `var_store` | loads into tch's variable stores (feature `tch`) |

pub mod convert;
pub mod device;
mod error;
pub mod explain;
pub mod format;
pub mod io;
pub mod load;
pub mod model;
#[cfg(any(feature = "capi", feature = "torch"))]
mod opened;
mod options;
pub mod pack;
pub mod plan;
mod progress;
mod reader;
pub mod sign;
pub mod stats;
mod sync;
pub mod verify;

#[cfg(feature = "torch")]
mod bridge;
#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "tch")]
pub mod var_store;

pub use error::{Error, ErrorKind, Result};
pub use options::Environment;
pub use progress::Progress;
pub use reader::Reader;
