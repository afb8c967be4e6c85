//! Bytes from files and objects of stores, and to files: sources, mappings, the read engine, atomic replacement.

mod buffer;
mod encoded;
pub mod file;
pub mod files;
mod input;
pub mod map;
pub mod memory;
pub mod pages;
pub mod read;
mod remote;
pub mod route;
mod source;
pub mod write;

pub use buffer::HostBuffer;
pub use file::FileSource;
pub use files::Files;
pub use input::Input;
pub use map::Mapping;
pub use pages::Pages;
pub use read::{direct, prefetch};
pub use remote::RemoteFile;
pub use route::{Asked, Route, Samples, residency};
pub use source::Source;
pub use write::temporary;
