//! Bytes from files and to files: sources, mappings, the read engine, atomic replacement.

mod buffer;
pub mod file;
pub mod files;
pub mod map;
pub mod memory;
pub mod pages;
pub mod read;
pub mod route;
mod source;
pub mod write;

pub use buffer::HostBuffer;
pub use file::FileSource;
pub use files::Files;
pub use map::Mapping;
pub use pages::Pages;
pub use read::{
    direct::{self, Input},
    prefetch,
};
pub use route::{Asked, Route, Samples, residency};
pub use source::Source;
pub use write::temporary;
