//! Environment variables, as they were when an object was opened.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
};

use reqsign_core::StaticEnv;

/// Variables by their names. They hold secrets: nothing prints them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Those of this process, as they are now.
    #[must_use]
    pub fn now() -> Self {
        Self(crate::environment::variables())
    }

    /// The trimmed value; unset and empty are the same.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The same, but for these.
    pub(super) fn with<'a>(mut self, pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Self {
        for (name, value) in pairs {
            match value {
                Some(value) => self.0.insert(name.to_owned(), value),
                None => self.0.remove(name),
            };
        }
        self
    }

    /// The first of these that is set.
    pub(super) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// Whether it is set to what means yes.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(is_yes)
    }

    /// The user's home folder, or what lies in it.
    pub(super) fn home(&self, below: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("HOME")?).join(below))
    }

    /// `path`, of which `~/` stands for the home folder.
    pub(super) fn expanded(&self, path: &str) -> PathBuf {
        let home = path.strip_prefix("~/").and_then(|below| self.home(below));
        home.unwrap_or_else(|| path.into())
    }

    /// As the libraries that look for credentials want them.
    pub(super) fn env(&self) -> StaticEnv {
        let envs: HashMap<_, _> = self.0.clone().into_iter().collect();
        StaticEnv { home_dir: self.get("HOME").map(PathBuf::from), envs }
    }
}

/// Whether a variable's value means yes.
pub(super) fn is_yes(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Settings {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}
