//! The index of sharded weights, as model hubs have it: which tensor lies in which file beside the index.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Index, signature::SET_KEY};
use crate::error::{Error, Result};

/// Which files belong together.
#[derive(Debug, PartialEq, Eq)]
pub struct Shards {
    /// The file of each tensor, by names that stay in the index's folder.
    pub weight_map: BTreeMap<String, String>,
    /// What the shards of this save have in common, if their writer said so.
    pub set: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    weight_map: BTreeMap<String, String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl Shards {
    /// Parses the JSON of an index.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) for what is no index, and for names that lead out of the folder.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let Raw { weight_map, metadata } = serde_json::from_slice(json)
            .map_err(|error| Error::format(format!("not a valid index: {error}")))?;
        if weight_map.is_empty() {
            return Err(Error::format(
                "not a valid index: its weight_map of tensor names to file names is empty",
            ));
        }
        if let Some(file) = weight_map.values().find(|file| !is_plain_name(file)) {
            return Err(Error::format(format!("{file:?} is not a plain file name")));
        }
        let set = metadata.get(SET_KEY).and_then(Value::as_str).map(str::to_owned);
        Ok(Self { weight_map, set })
    }

    /// The JSON of the index of tensors that have `total_bytes` together.
    #[must_use]
    pub fn render(&self, total_bytes: u64) -> String {
        let mut metadata = Map::from_iter([("total_size".to_owned(), total_bytes.into())]);
        metadata.extend(self.set.iter().map(|set| (SET_KEY.to_owned(), set.as_str().into())));
        let index = json!({"metadata": metadata, "weight_map": self.weight_map});
        format!("{index:#}\n")
    }

    /// The files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Checks that the `shards` are those of this index and hold what it promises.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format).
    pub fn check(&self, shards: &[(String, Index)]) -> Result<()> {
        let by_file: BTreeMap<&str, &Index> =
            shards.iter().map(|(file, index)| (file.as_str(), index)).collect();
        let named = || shards.iter().find_map(|(_, index)| index.metadata().get(SET_KEY));
        if let Some(set) = self.set.as_ref().or_else(named) {
            let strange = |(_, index): &&(String, Index)| index.metadata().get(SET_KEY) != Some(set);
            if let Some((file, _)) = shards.iter().find(strange) {
                let other = if self.set.is_some() { "its index" } else { "another shard" };
                return Err(Error::format(format!(
                    "{file} belongs to another save than {other}: the set was written only in part"
                )));
            }
        }
        self.check_names(|file, name| by_file.get(file).is_some_and(|index| index.find(name).is_some()))
    }

    /// Checks that each file holds (`held`, by file and tensor) what the index promises of it.
    ///
    /// # Errors
    /// [`ErrorKind::Format`](crate::ErrorKind::Format).
    pub fn check_names(&self, held: impl Fn(&str, &str) -> bool) -> Result<()> {
        let broken: Vec<_> = self.weight_map.iter().filter(|(name, file)| !held(file, name)).collect();
        match broken.first() {
            Some((name, file)) => Err(Error::format(format!(
                "{} tensors of the index are missing from their shards, the first is {name:?} in {file}",
                broken.len()
            ))),
            None => Ok(()),
        }
    }
}

/// Whether it is one name on any system's idea of a path.
fn is_plain_name(name: &str) -> bool {
    !["", ".", ".."].contains(&name) && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        Shards::parse(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn files_are_named_once() {
        let json = br#"{"metadata": {"total_size": 3, "flashpack_set": "7f"},
            "weight_map": {"b": "2.flashpack", "a": "1.flashpack", "c": "2.flashpack"}}"#;
        let shards = Shards::parse(json).unwrap();
        assert_eq!(shards.files(), ["1.flashpack", "2.flashpack"]);
        assert_eq!(shards.set.as_deref(), Some("7f"));
    }

    #[test]
    fn what_leads_out_of_the_folder_is_refused() {
        for name in ["../a", "/a", "", ".", "..", "a\\\\b", "C:a", "a\\u0000b"] {
            let message = refused(&format!(r#"{{"weight_map": {{"x": "{name}"}}}}"#));
            assert!(message.contains("is not a plain file name"), "{message}");
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        let deep = "[".repeat(100_000);
        for json in ["", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"x\": 1}}", "{", &deep] {
            assert!(refused(json).contains("not a valid index"), "{json}");
        }
    }
}
