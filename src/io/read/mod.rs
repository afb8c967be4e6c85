//! Reading: the engine that carries out what is planned, its threads, and reading ahead of mappings.

mod bound;
mod digests;
pub mod direct;
mod engine;
mod growth;
mod in_order;
mod pace;
pub mod prefetch;
mod threads;

pub use bound::{runs, span};
pub use engine::{ChunkReader, MAX_READER_BYTES, read, read_anywhere};
pub use in_order::InOrder;
pub use threads::{Work, in_parallel, run_readers, run_threads};
