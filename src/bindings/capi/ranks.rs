//! Which rank reads what, for ranks of which only some have the model open.

use std::num::{NonZeroU64, NonZeroUsize};

use serde::Deserialize;
use serde_json::{Value, json};

use super::NativePath;
use crate::{
    error::{At as _, Error, Result},
    format::footer,
    plan::{
        Selection, View,
        ranks::{Group, Sharing, Together, Window, unit_of},
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RanksRequest {
    path: NativePath,
    /// What the rank that has opened the model says of it.
    footer: String,
    /// Whether the model is of several files.
    several: bool,
    /// `None`: the macroblocks.
    names: Option<Vec<String>>,
    ranks: NonZeroUsize,
    /// `contiguous` or `windows`; `None`: rank `src` reads everything.
    strategy: Option<String>,
    src: usize,
    window_bytes: Option<NonZeroU64>,
}

impl RanksRequest {
    pub(super) fn run(&self) -> Result<Value> {
        let (index, chunk_bytes) = footer::outline(&self.footer).at(&self.path)?;
        let sharing = match self.strategy.as_deref() {
            None => Sharing::One(self.src),
            Some("contiguous") => Sharing::Contiguous,
            Some("windows") => Sharing::Windows,
            Some(other) => return Err(Error::argument(format!("unknown shard strategy {other:?}"))),
        };
        let selection = self.names.as_deref().map_or(Selection::Blocks, Selection::Names);
        let group =
            Group { ranks: self.ranks, sharing, unit: unit_of(chunk_bytes), window_bytes: self.window_bytes };
        let load = Together::new(&index, selection, self.several, &group).at(&self.path)?;
        let tensor = |view: &View| json!([view.offset, view.bytes(), view.dtype.name(), &*view.shape]);
        let window = |it: &Window| {
            let pieces: Vec<_> = it.pieces.iter().map(|(file, at)| json!([file, at.start, at.end])).collect();
            json!([it.owner, it.range.start, it.range.end, pieces])
        };
        let step = |step: &Vec<Window>| step.iter().map(window).collect::<Vec<_>>();
        let tensors: Vec<_> = load.views.iter().map(tensor).collect();
        let steps: Vec<_> = load.steps.iter().map(step).collect();
        Ok(json!({"bytes": load.bytes, "tensors": tensors, "steps": steps}))
    }
}
