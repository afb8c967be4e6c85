//! Reading: the way to the bytes, and the engine that carries out what is planned.

pub mod direct;
mod engine;
pub mod prefetch;
pub mod residency;
mod route;
mod threads;

pub use engine::{ChunkReader, read, read_anywhere};
pub use route::{Asked, Probe, Route, Why};
pub use threads::{Work, run_threads};
