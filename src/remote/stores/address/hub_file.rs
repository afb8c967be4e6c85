//! Files of repositories, as `hf://` names them.

use percent_encoding::percent_decode_str;

use super::{encoded, encoded_whole};
use crate::error::{Error, Result};

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// `models`, `datasets` or `spaces`.
    pub kind: String,
    /// `org/name`.
    pub repository: String,
    pub revision: String,
    pub path: String,
}

impl File {
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument): `url` names none.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = || Error::argument("is not hf://[models|datasets|spaces/]org/repo[@revision]/path");
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (kind, rest) = match rest.split_once('/') {
            Some((kind @ ("models" | "datasets" | "spaces"), rest)) => (kind, rest),
            _ => ("models", rest),
        };
        let (owner, rest) = rest.split_once('/').ok_or_else(wrong)?;
        let (name, rest) = rest.split_at(rest.find(['/', '@']).ok_or_else(wrong)?);
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => revision_and_path(rest).ok_or_else(wrong)?,
            None => ("main", &rest[1..]),
        };
        let is_name = |name: &str| {
            let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
            !name.is_empty() && name.chars().all(is_letter) && !name.starts_with('.')
        };
        let is_path = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let revision = percent_decode_str(revision).decode_utf8_lossy().into_owned();
        if !is_name(owner) || !is_name(name) || !is_path(path) || !is_path(&revision) {
            return Err(wrong());
        }
        Ok(Self {
            kind: kind.to_owned(),
            repository: format!("{owner}/{name}"),
            revision,
            path: path.to_owned(),
        })
    }

    /// The URL of the file as it is in `commit`.
    pub(super) fn at(&self, commit: &str) -> String {
        format!("hf://{}/{}@{commit}/{}", self.kind, self.repository, self.path)
    }

    /// Where its page is, below the endpoint.
    pub(super) fn page(&self) -> String {
        let kind = if self.kind == "models" { String::new() } else { format!("{}/", self.kind) };
        format!("{kind}{}", self.repository)
    }

    /// The folder that it lies in.
    pub(super) fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Where that is listed, below the endpoint.
    pub(super) fn tree(&self) -> String {
        let whole = format!("api/{}/{}/tree/{}", self.kind, self.repository, encoded_whole(&self.revision));
        if self.folder().is_empty() { whole } else { format!("{whole}/{}", encoded(self.folder())) }
    }

    /// Where its revision is described, below the endpoint.
    pub(super) fn info(&self) -> String {
        format!("api/{}/{}/revision/{}", self.kind, self.repository, encoded_whole(&self.revision))
    }

    /// Where it is given out, below the endpoint.
    pub(super) fn resolve(&self, revision: &str) -> String {
        format!("{}/resolve/{}/{}", self.page(), encoded_whole(revision), encoded(&self.path))
    }
}

/// Of `revision/path`; some revisions have slashes of their own.
fn revision_and_path(rest: &str) -> Option<(&str, &str)> {
    let slashes = match rest {
        _ if rest.starts_with("refs/pr/") || rest.starts_with("refs/convert/") => 2,
        _ => 0,
    };
    let (at, _) = rest.match_indices('/').nth(slashes)?;
    Some((&rest[..at], &rest[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: &str, repository: &str, revision: &str, path: &str) -> File {
        let [kind, repository, revision, path] = [kind, repository, revision, path].map(ToOwned::to_owned);
        File { kind, repository, revision, path }
    }

    #[test]
    fn urls_name_a_file_of_a_repository() {
        for (url, expected) in [
            ("hf://org/repo/a/b.flashpack", file("models", "org/repo", "main", "a/b.flashpack")),
            ("hf://models/org/repo@v1.0/b", file("models", "org/repo", "v1.0", "b")),
            ("hf://datasets/org/repo@refs/pr/3/b", file("datasets", "org/repo", "refs/pr/3", "b")),
            ("hf://org/repo@refs%2Fpr%2F3/b", file("models", "org/repo", "refs/pr/3", "b")),
        ] {
            assert_eq!(File::parse(url).unwrap(), expected, "{url}");
        }
        for wrong in
            ["hf://repo/file", "hf://org/repo", "hf://org/repo@main", "hf://org/repo/", "hf://org/repo/../x"]
        {
            let error = File::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("org/repo[@revision]/path"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_folder_is_listed_below_the_endpoint() {
        let tree = |url| File::parse(url).unwrap().tree();
        assert_eq!(tree("hf://org/repo@refs/pr/1/-"), "api/models/org/repo/tree/refs%2Fpr%2F1");
        assert_eq!(tree("hf://datasets/org/repo/a b/c/-"), "api/datasets/org/repo/tree/main/a%20b/c");
    }

    #[test]
    fn a_file_is_resolved_below_the_endpoint() {
        let resolve = |url| File::parse(url).unwrap().resolve("refs/pr/1");
        assert_eq!(resolve("hf://org/repo/a b"), "org/repo/resolve/refs%2Fpr%2F1/a%20b");
        assert_eq!(resolve("hf://datasets/org/repo/a"), "datasets/org/repo/resolve/refs%2Fpr%2F1/a");
    }
}
