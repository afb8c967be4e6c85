//! What this library does with files: each job a short composition of the layers above it.

pub mod compare;
pub mod convert;
pub mod copy;
mod encode;
pub mod explain;
pub mod load;
pub mod pack;
mod pieces;
pub mod repack;
mod settings;
pub mod shards;
pub mod sign;
pub mod verify;
