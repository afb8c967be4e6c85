//! The library as other languages and libraries see it.

#[cfg(feature = "torch")]
mod bridge;
#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "remote")]
pub(crate) mod remote;
#[cfg(feature = "tch")]
pub mod var_store;
