//! Files out of files.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Value, json};

use super::NativePath;
use crate::{
    codec::Level,
    error::{Error, Result},
    format::{DEFAULT_ALIGN_BYTES, DType, checksum::Algorithm},
    jobs::{
        convert,
        repack::{self, Take, repack},
    },
    model::{opened, weight_files},
    plan::Ignore,
    progress::Progress,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConvertRequest {
    /// A file, or the index of shards.
    path: NativePath,
    destination: NativePath,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    align_bytes: Option<u64>,
    #[serde(default)]
    ignore_names: Vec<String>,
    #[serde(default)]
    ignore_prefixes: Vec<String>,
    #[serde(default)]
    ignore_suffixes: Vec<String>,
    /// Name of the digest function.
    #[serde(default)]
    checksum: Option<String>,
    /// Bytes of a file, of several.
    #[serde(default)]
    shard_bytes: Option<u64>,
    /// How hard to compress.
    #[serde(default)]
    compress: Option<String>,
}

impl ConvertRequest {
    pub(super) fn run(self, progress: Progress<'_>) -> Result<Value> {
        let dtype = floating(self.dtype)?;
        let (sources, promised) = weight_files(&self.path)?;
        let request = convert::Request {
            sources: &sources,
            promised: promised.as_ref(),
            destination: &self.destination,
            dtype,
            align_bytes: self.align_bytes.unwrap_or(DEFAULT_ALIGN_BYTES),
            ignore: Ignore {
                names: &self.ignore_names,
                prefixes: &self.ignore_prefixes,
                suffixes: &self.ignore_suffixes,
            },
            algorithm: Algorithm::asked(self.checksum.as_deref())?,
            shard_bytes: self.shard_bytes,
            compress: Level::asked(self.compress.as_deref())?,
        };
        Ok(convert::from_safetensors(&request, progress)?.map_or(Value::Null, converted))
    }
}

/// A FlashPack file to store in another way.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecodeRequest {
    path: NativePath,
    destination: NativePath,
    #[serde(default)]
    compress: Option<String>,
}

impl RecodeRequest {
    pub(super) fn run(self, progress: Progress<'_>) -> Result<Value> {
        let level = Level::asked(self.compress.as_deref())?;
        let made = convert::recode(&self.path, &self.destination, level, progress)?;
        Ok(made.map_or(Value::Null, converted))
    }
}

/// The tensors that open models give a new file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RepackRequest {
    models: Vec<i64>,
    /// Which of the models, the name there, and the new name.
    tensors: Vec<(usize, String, String)>,
    destination: NativePath,
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    checksum: Option<String>,
    #[serde(default)]
    shard_bytes: Option<u64>,
    /// How hard to compress.
    #[serde(default)]
    compress: Option<String>,
    /// Whether the first model is what the new file takes the place of.
    replaces: bool,
}

impl RepackRequest {
    pub(super) fn run(self, progress: Progress<'_>) -> Result<Value> {
        let take = |(model, name, new_name)| Take { model, name, new_name };
        let request = repack::Request {
            models: self.models.into_iter().map(opened::find).collect::<Result<_>>()?,
            tensors: self.tensors.into_iter().map(take).collect(),
            destination: self.destination.0,
            dtype: floating(self.dtype)?,
            metadata: self.metadata,
            algorithm: Algorithm::asked(self.checksum.as_deref())?,
            shard_bytes: self.shard_bytes,
            compress: Level::asked(self.compress.as_deref())?,
            replaces: self.replaces,
        };
        Ok(repack(request, progress)?.map_or(Value::Null, converted))
    }
}

pub(super) fn revert(path: &Path, destination: &Path, progress: Progress<'_>) -> Result<Value> {
    convert::to_safetensors(path, destination, progress).map(converted)
}

fn converted(made: convert::Converted) -> Value {
    json!({"tensors": made.tensors, "bytes": made.bytes})
}

/// The floating dtype of that name, if there is one.
fn floating(name: Option<String>) -> Result<Option<DType>> {
    let unknown = |name: String| Error::argument(format!("Unsupported dtype: {name:?}"));
    let dtype = name.map(|name| DType::from_name(&name).ok_or_else(|| unknown(name))).transpose()?;
    match dtype.filter(|dtype| !dtype.is_castable_float()) {
        Some(other) => {
            let what = format!(
                "{other} is no floating type to cast to: take bfloat16, float16, float32 or the like"
            );
            Err(Error::argument(format!("Unsupported dtype: {what}")))
        }
        None => Ok(dtype),
    }
}
