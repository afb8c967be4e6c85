//! Bytes from files and to files: sources, mappings, the read engine, atomic replacement.

mod behind;
mod buffer;
pub mod direct;
pub mod file;
pub mod files;
pub mod map;
pub mod memory;
pub mod pages;
pub mod prefetch;
pub mod read;
pub mod residency;
mod source;
pub mod temporary;
pub mod write;

pub use buffer::HostBuffer;
pub use direct::Input;
pub use file::FileSource;
pub use files::Files;
pub use map::Mapping;
pub use pages::Pages;
pub use residency::Route;
pub use source::Source;
