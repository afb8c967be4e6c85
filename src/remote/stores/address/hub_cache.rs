//! The cache of `huggingface_hub`: `models--org--repo/snapshots/<commit>/<path>`, and `refs/<revision>` with a commit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::hub_file::File;
use crate::remote::stores::settings::Settings;

/// The folder of all that Hugging Face's libraries keep.
pub(super) fn home(settings: &Settings) -> Option<PathBuf> {
    if let Some(home) = settings.get("HF_HOME") {
        return Some(settings.expanded(home));
    }
    let cache = settings.get("XDG_CACHE_HOME").map(|path| settings.expanded(path));
    Some(cache.or_else(|| settings.home(".cache"))?.join("huggingface"))
}

/// The folder of the cache.
pub(super) fn folder(settings: &Settings) -> Option<PathBuf> {
    let named =
        settings.first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(|path| settings.expanded(path));
    named.or_else(|| Some(home(settings)?.join("hub")))
}

/// `file` of `commit` in the cache at `folder`; without one that of a revision which is a commit or, where `refs` may be
/// believed, of the commit that the revision was when it was downloaded.
pub(super) fn find(folder: &Path, file: &File, commit: Option<&str>, believes_refs: bool) -> Option<PathBuf> {
    let repository = folder.join(format!("{}--{}", file.kind, file.repository.replace('/', "--")));
    let commit = match commit {
        Some(commit) => commit.to_owned(),
        None if is_commit(&file.revision) => file.revision.clone(),
        None if believes_refs => fs::read_to_string(repository.join("refs").join(&file.revision)).ok()?,
        None => return None,
    };
    let commit = Some(commit.trim()).filter(|commit| is_commit(commit))?;
    let path = repository.join("snapshots").join(commit).join(&file.path);
    path.is_file().then_some(path)
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_lies_where_its_owner_looks() {
        let at = |pairs: &[(&str, &str)]| folder(&pairs.iter().copied().collect()).unwrap();
        assert_eq!(at(&[("HOME", "/me")]), Path::new("/me/.cache/huggingface/hub"));
        assert_eq!(at(&[("HOME", "/me"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(at(&[("HOME", "/me"), ("HF_HOME", "~/hf")]), Path::new("/me/hf/hub"));
        assert_eq!(at(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]), Path::new("/cache"));
    }

    #[test]
    fn files_are_found_by_their_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = ("a".repeat(40), "b".repeat(40));
        let repository = folder.path().join("models--org--repo");
        for commit in [&old, &new] {
            fs::create_dir_all(repository.join("snapshots").join(commit).join("below")).unwrap();
        }
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), format!("{old}\n")).unwrap();
        let expected = repository.join("snapshots").join(&old).join("below/file");
        fs::write(&expected, "").unwrap();
        let file = |url: &str| File::parse(url).unwrap();
        let main = file("hf://org/repo/below/file");
        assert_eq!(find(folder.path(), &main, Some(&old), false), Some(expected.clone()));
        assert_eq!(find(folder.path(), &main, Some(&new), true), None);
        assert_eq!(find(folder.path(), &main, None, true), Some(expected.clone()));
        assert_eq!(find(folder.path(), &main, None, false), None);
        let pinned = file(&format!("hf://org/repo@{old}/below/file"));
        assert_eq!(find(folder.path(), &pinned, None, false), Some(expected));
        assert_eq!(find(folder.path(), &file("hf://org/other/below/file"), Some(&old), true), None);
    }
}
