//! Which weights a folder stands for: a whole file, or the index of shards.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    error::{At as _, Error, IoContext as _, Result},
    remote,
};

/// Follows the name that shards were saved under.
pub const INDEX_SUFFIX: &str = ".index.json";
/// What loads as it is, the preferred first.
pub const LOADABLE: [&str; 2] = [".flashpack", ".safetensors"];
/// What is converted: safetensors go before what is pickled.
pub const CONVERTIBLE: [&str; 2] = [".safetensors", ".bin"];

const MODEL_STEMS: [&str; 3] = ["model", "diffusion_pytorch_model", "pytorch_model"];
/// PEFT and diffusers find adapters by these names.
const ADAPTER_STEMS: [&str; 3] = ["adapter_model", "pytorch_lora_weights", "learned_embeds"];

/// The index of the shards that are saved as `destination`.
#[must_use]
pub fn index_path(destination: &Path) -> PathBuf {
    if let Some(url) = remote::url(destination) {
        return remote::with_suffix(url, INDEX_SUFFIX).into();
    }
    let mut name = destination.as_os_str().to_owned();
    name.push(INDEX_SUFFIX);
    name.into()
}

/// The file that loads open for `path`: of a folder its weights, of a name that shards were saved under their index; of a URL
/// that of the version which lies there now.
///
/// # Errors
/// Those of [`find`].
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if let Some(url) = remote::url(path) {
        return Ok(remote::stores()?.pinned(url)?.into());
    }
    if path.is_dir() {
        return find(path, None, &LOADABLE);
    }
    let index = index_path(path);
    let is_shards = fs::symlink_metadata(path).is_err() && index.is_file();
    Ok(if is_shards { index } else { path.to_owned() })
}

/// The weights in `folder`, of `variant` if there is one, of the first of the `kinds` (suffixes) that there is.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) if there are none or the folder cannot be read,
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for several choices and for shards without an index.
pub fn find(folder: &Path, variant: Option<&str>, kinds: &[&str]) -> Result<PathBuf> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).during("cannot read", folder)? {
        let entry = entry.during("cannot read", folder)?;
        // No weights have a name that is not UTF-8.
        if entry.path().is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.insert(name);
        }
    }
    match choose(&names, &middle(variant), kinds).at(folder)? {
        Some(name) => Ok(folder.join(name)),
        None => Err(nothing(folder, variant, kinds)),
    }
}

/// [`find`] for the folder of a store that `url` names.
///
/// # Errors
/// As [`find`], and those of [`Stores::list`](crate::remote::Stores::list).
pub fn find_url(url: &str, variant: Option<&str>, kinds: &[&str]) -> Result<PathBuf> {
    let label = remote::shown(url);
    let names = remote::stores()?.list(url, false)?.into_iter().map(|entry| entry.name).collect();
    let found = choose(&names, &middle(variant), kinds).at(Path::new(&label))?;
    let missing =
        || Error::not_found(format!("No {} weights in the folder", kinds.join(" or "))).at(Path::new(&label));
    found.map(|name| remote::within(url, &name).into()).ok_or_else(missing)
}

/// What stands before the suffix in names of `variant`.
fn middle(variant: Option<&str>) -> String {
    variant.map(|variant| format!(".{variant}")).unwrap_or_default()
}

fn choose(names: &BTreeSet<String>, middle: &str, kinds: &[&str]) -> Result<Option<String>> {
    // An adapter may lie beside the model that it is for.
    let adapter = kinds.iter().find_map(|kind| known(names, middle, kind, &ADAPTER_STEMS));
    for kind in kinds {
        if let Some(name) = known(names, middle, kind, &MODEL_STEMS) {
            return Ok(Some(name));
        }
        if adapter.is_some() {
            continue;
        }
        if let Some(index) = only(names, &format!("{kind}.index{middle}.json"))? {
            // Saved later, under the name of the shards.
            let whole = index.strip_suffix(INDEX_SUFFIX).filter(|whole| names.contains(*whole));
            return Ok(Some(whole.unwrap_or(index).to_owned()));
        }
        if let Some(name) = only(names, &format!("{middle}{kind}"))? {
            if is_shard(name) {
                let what = format!("{name}: one shard of several, and there is no index of them");
                return Err(Error::argument(what));
            }
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(adapter)
}

/// The weights of a name that libraries know: whole ones, or else their index.
fn known(names: &BTreeSet<String>, middle: &str, kind: &str, stems: &[&str]) -> Option<String> {
    // The last two are diffusers' older spellings of a variant.
    let ends = [
        format!("{kind}.index{middle}.json"),
        format!("{kind}{middle}.index.json"),
        format!("{middle}{kind}.index.json"),
    ];
    let whole = stems.iter().map(|stem| format!("{stem}{middle}{kind}"));
    let indices = stems.iter().flat_map(|stem| ends.iter().map(move |end| format!("{stem}{end}")));
    whole.chain(indices).find(|name| names.contains(name))
}

/// The only name that ends so.
fn only<'a>(names: &'a BTreeSet<String>, end: &str) -> Result<Option<&'a str>> {
    let found: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(end)).collect();
    match found[..] {
        [] => Ok(None),
        [name] => Ok(Some(name)),
        _ => Err(Error::argument(format!("which of these is meant? {}", found.join(", ")))),
    }
}

/// Whether the name has the number of a shard in it: `-00001-of-00002` before a dot.
pub(crate) fn is_shard(name: &str) -> bool {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    name.match_indices("-of-").any(|(at, mark)| {
        let rest = &name[at + mark.len()..];
        let before = name[..at].rsplit_once('-').map(|(_, before)| before);
        before.is_some_and(number) && rest.split_once('.').is_some_and(|(count, _)| number(count))
    })
}

fn nothing(folder: &Path, variant: Option<&str>, kinds: &[&str]) -> Error {
    let of_variant = variant.map(|variant| format!(" of variant '{variant}'")).unwrap_or_default();
    let library = if kinds == CONVERTIBLE { library_of(folder) } else { None };
    let advice = library
        .map(|it| format!("; if {it} can load what is there, convert with --use-{it}"))
        .unwrap_or_default();
    let what = format!("No {} weights{of_variant} in the folder{advice}", kinds.join(" or "));
    Error::not_found(what).at(folder)
}

/// The library whose configuration is in the folder.
fn library_of(folder: &Path) -> Option<&'static str> {
    let config: Map<String, Value> =
        serde_json::from_slice(&fs::read(folder.join("config.json")).ok()?).ok()?;
    let has = |key: &str| config.contains_key(key);
    if has("_class_name") {
        return Some("diffusers");
    }
    let of_transformers = ["architectures", "model_type", "transformers_version"];
    of_transformers.into_iter().any(has).then_some("transformers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], variant: Option<&str>, kinds: &[&str]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = find(folder.path(), variant, kinds)?;
        Ok(found.file_name().unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn the_likeliest_weights_are_chosen() {
        let safetensors_index = "model.safetensors.index.json";
        for (names, variant, kinds, expected) in [
            (&["model.flashpack", "model.safetensors"][..], None, LOADABLE, "model.flashpack"),
            (&["model.safetensors", "odd.flashpack"], None, LOADABLE, "odd.flashpack"),
            (&["model.safetensors", "x.bin"], None, CONVERTIBLE, "model.safetensors"),
            (&["pytorch_model.bin", "config.json"], None, CONVERTIBLE, "pytorch_model.bin"),
            (
                &["model.fp16.safetensors", "model.safetensors"],
                Some("fp16"),
                CONVERTIBLE,
                "model.fp16.safetensors",
            ),
            (&["odd.fp16.safetensors", "odd.safetensors"], Some("fp16"), CONVERTIBLE, "odd.fp16.safetensors"),
            (&[safetensors_index, "model-00001-of-00002.safetensors"], None, LOADABLE, safetensors_index),
            (
                &["model.fp16.safetensors.index.json"],
                Some("fp16"),
                LOADABLE,
                "model.fp16.safetensors.index.json",
            ),
            (
                &["model.safetensors.fp16.index.json"],
                Some("fp16"),
                LOADABLE,
                "model.safetensors.fp16.index.json",
            ),
            (
                &["model.safetensors.index.fp16.json"],
                Some("fp16"),
                LOADABLE,
                "model.safetensors.index.fp16.json",
            ),
            (&["odd.flashpack.index.json"], None, LOADABLE, "odd.flashpack.index.json"),
            (&["odd.flashpack.index.json", "odd.flashpack"], None, LOADABLE, "odd.flashpack"),
            (&["adapter_model.safetensors"], None, LOADABLE, "adapter_model.safetensors"),
            (&["adapter_model.safetensors", "odd.safetensors"], None, LOADABLE, "adapter_model.safetensors"),
            (&["adapter_model.safetensors", "model.safetensors"], None, LOADABLE, "model.safetensors"),
        ] {
            assert_eq!(chosen(names, variant, &kinds).unwrap(), expected, "{names:?}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_not_there_is_refused() {
        for (names, expected) in [
            (
                &["one.safetensors", "two.safetensors"][..],
                "which of these is meant? one.safetensors, two.safetensors",
            ),
            (&["a.flashpack.index.json", "b.flashpack.index.json"], "which of these is meant?"),
            (&["model-00001-of-00002.flashpack"], "one shard of several, and there is no index of them"),
            (&["notes.txt"], "No .flashpack or .safetensors weights in the folder"),
        ] {
            let error = chosen(names, None, &LOADABLE).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = chosen(&["model.safetensors"], Some("fp16"), &CONVERTIBLE).unwrap_err();
        assert!(
            error.to_string().ends_with("No .safetensors or .bin weights of variant 'fp16' in the folder")
        );
        assert_eq!(error.errno(), Some(2));
    }

    #[test]
    fn a_library_that_may_load_the_folder_is_named() {
        for (config, expected) in [
            (r#"{"_class_name": "UNet"}"#, "with --use-diffusers"),
            (r#"{"model_type": "bert"}"#, "with --use-transformers"),
            ("[", "weights in the folder"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.json"), config).unwrap();
            let error = find(folder.path(), None, &CONVERTIBLE).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn only_numbers_of_five_digits_are_those_of_shards() {
        for (name, expected) in [
            ("model-00001-of-00002.flashpack", true),
            ("a-of-model-00001-of-00002.fp16.bin", true),
            ("model-0001-of-00002.flashpack", false),
            ("model-00001-of-00002", false),
            ("model-00001-of-000002.bin", false),
            ("model-of-models.bin", false),
        ] {
            assert_eq!(is_shard(name), expected, "{name}");
        }
    }

    #[test]
    fn a_name_that_shards_were_saved_under_is_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let (name, index) =
            (folder.path().join("model.flashpack"), folder.path().join("model.flashpack.index.json"));
        assert_eq!(resolve(&name).unwrap(), name);
        fs::write(&index, "").unwrap();
        assert_eq!(resolve(&name).unwrap(), index);
        assert_eq!(resolve(folder.path()).unwrap(), index);
        fs::write(&name, "").unwrap();
        assert_eq!(resolve(&name).unwrap(), name, "a whole file saved later");
    }
}
