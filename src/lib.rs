//! FlashPack: model weights as contiguous, aligned macroblocks with a JSON footer, and the fastest way to load them.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use flashpack::{
//!     Progress,
//!     format::{
//!         DType,
//!         layout::{Order, TensorSpec},
//!     },
//!     load::{self, load},
//!     pack::Packer,
//!     plan::Selection,
//! };
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("model.flashpack");
//! let weight = TensorSpec { name: "weight".into(), dtype: DType::Int32, shape: vec![2, 3], tied_to: None };
//! let mut file = Packer::create(&path, &[weight], Order::Given, 128, BTreeMap::new(), Progress::SILENT)?;
//! file.write(&[1, 2, 3, 4, 5, 6_i32].map(i32::to_le_bytes).concat())?;
//! file.finish()?; // until here there is no file
//!
//! let names = ["weight".to_owned()];
//! let mut loaded = load(&path, Selection::Names(&names), load::Options::default(), Progress::SILENT)?;
//! assert_eq!(*loaded.views[0].shape, [2, 3]);
//! assert_eq!(loaded.to_bytes(0)[..8], [1_i32, 2].map(i32::to_le_bytes).concat());
//! # Ok::<(), flashpack::Error>(())
//! ```
//!
//! Layers: each module uses only those above it, and in its own row those to its left. `tests/layering.rs` reads this
//! table, and allows no two modules that use each other.
//!
//! | module | what |
//! | --- | --- |
//! | `os` | what each operating system does in its own way: Linux, macOS, Windows |
//! | `simd` | functions compiled for several kinds of processors |
//! | `error`, `sync`, `progress`, `text`, [`ram`], [`numa`], `environment` | what all use: errors, locks, progress, words for numbers, memory and its nodes, environment variables |
//! | [`codec`] | chunks of a payload in fewer bytes |
//! | [`remote`], [`stats`] | objects of stores that a URL names; the time that loads spend |
//! | [`format`](mod@format) | the file: bytes in, values out; validated once into an [`Index`](format::Index) |
//! | [`plan`] | pure: index and selection to what is read where, and where each tensor lies |
//! | [`io`] | sources of bytes, mappings, the engine that reads what is planned, atomic writes |
//! | [`device`] | memory that loads fill; staging buffers and the transfer engine to devices |
//! | [`model`] | what a path stands for: one open file or several; open models by number |
//! | `jobs` | [`load`], [`pack`], [`shards`], [`sign`](mod@sign), [`verify`](mod@verify), [`convert`], [`repack`](mod@repack), [`compare`](mod@compare), [`copy`], [`explain`](mod@explain): each a short composition of the above |
//! | `bindings` | the C interfaces (features `capi`, `remote`), the cxx bridge to torch (`torch`), tch's variable stores (`tch`) |

#[cfg(target_endian = "big")]
compile_error!(
    "FlashPack files are little endian, and their bytes are handed over as they are: build for a little-endian machine"
);

#[cfg(any(feature = "capi", feature = "remote", feature = "torch", feature = "tch"))]
mod bindings;
pub mod codec;
pub mod device;
mod environment;
mod error;
pub mod format;
pub mod io;
mod jobs;
pub mod model;
pub mod numa;
mod os;
pub mod plan;
mod progress;
pub mod ram;
pub mod remote;
mod simd;
pub mod stats;
mod sync;
mod text;

#[cfg(feature = "capi")]
pub use bindings::capi;
#[cfg(feature = "tch")]
pub use bindings::var_store;
pub use environment::Environment;
pub use error::{Error, ErrorKind, Result};
pub use jobs::{compare, convert, copy, explain, load, pack, repack, shards, sign, verify};
pub use model::reader::Reader;
pub use progress::Progress;
