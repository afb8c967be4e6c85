//! What the format, the environment and the machine are.

use serde::Deserialize;
use serde_json::{Value, json};

use super::NativePath;
use crate::{
    environment::Environment,
    error::{Error, Result},
    format::DType,
    io::{Asked, Input, Samples},
    jobs::{convert, explain::measure},
};

pub(super) fn dtypes() -> Value {
    let facts = |dtype: &DType| {
        let safetensors = dtype.to_safetensors().map(|other| other.to_string());
        let converted = convert::casts(*dtype, DType::Float32);
        (dtype.name().to_owned(), json!([safetensors, dtype.size(), dtype.is_castable_float(), converted]))
    };
    DType::ALL.iter().map(facts).collect::<serde_json::Map<_, _>>().into()
}

pub(super) fn environment() -> Result<Value> {
    let environment = Environment::read()?;
    Ok(json!({
        "FLASHPACK_CPU_PARALLEL_READ": environment.eager,
        "FLASHPACK_PARALLEL_READ": environment.parallel_read,
        "FLASHPACK_NO_THREAD_CLAMP": !environment.clamps_threads,
        "FLASHPACK_SHARD_STRATEGY": environment.shard_strategy,
        "FLASHPACK_SHARD_BYTES": environment.shard_bytes,
    }))
}

/// The first `bytes` of a file are read or, without a path, as many copied in memory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeasureRequest {
    #[serde(default)]
    path: Option<NativePath>,
    bytes: u64,
    threads: usize,
    /// Past the page cache.
    #[serde(default)]
    direct: bool,
    /// Into the same memory again and again.
    #[serde(default)]
    reused: bool,
}

impl MeasureRequest {
    pub(super) fn seconds(self) -> Result<f64> {
        let rate = match self.path {
            None => measure::copying(self.threads)?,
            Some(path) => {
                let asked = Asked::all(Some(self.direct));
                let (input, _) = Input::open(&path, None)?.choose(asked, &Samples::default());
                let bytes =
                    usize::try_from(self.bytes).map_err(|_| Error::argument("more than memory can be"))?;
                measure::reading_all(&input, bytes, self.threads, self.reused)?
            }
        };
        Ok(rate.seconds(self.bytes))
    }
}
