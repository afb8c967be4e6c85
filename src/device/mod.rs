//! Memory that loads fill.

mod buffer;

pub use buffer::HostBuffer;
