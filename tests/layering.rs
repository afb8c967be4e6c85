//! The architecture, checked: who may know whom, and where `unsafe` may live.

use std::{fs, path::Path};

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20, "the sources were found");
    found
}

fn offenders(in_folder: &str, words: &[&str]) -> Vec<String> {
    sources()
        .iter()
        .filter(|(name, _)| name.starts_with(in_folder))
        .flat_map(|(name, text)| {
            words.iter().filter(|word| text.contains(**word)).map(move |word| format!("{name}: {word}"))
        })
        .collect()
}

#[test]
fn lower_layers_know_nothing_of_higher_ones() {
    let none: [String; 0] = [];
    let jobs = [
        "crate::load",
        "crate::pack",
        "crate::convert",
        "crate::verify",
        "crate::explain",
        "crate::bridge",
        "crate::capi",
        "crate::var_store",
    ];
    assert_eq!(
        offenders("format/", &["std::fs", "std::io", "crate::io", "crate::plan", "crate::device"]),
        none
    );
    assert_eq!(offenders("plan/", &["std::fs", "std::io", "crate::io", "crate::device", "thread::"]), none);
    for layer in ["format/", "io/", "device/", "plan/"] {
        assert_eq!(offenders(layer, &jobs), none);
    }
}

#[test]
fn each_foreign_interface_has_one_home() {
    for (word, home) in [
        ("cxx::", "bridge.rs"),
        ("cudarc", "device/cuda.rs"),
        ("extern \"C\"", "capi.rs"),
        ("env::var", "options.rs"),
        (" tch::", "var_store.rs"),
    ] {
        let strangers: Vec<_> = sources()
            .into_iter()
            .filter(|(name, text)| name != home && text.contains(word))
            .map(|(name, _)| name)
            .collect();
        assert!(strangers.is_empty(), "{word} in {strangers:?}");
    }
}

#[test]
fn unsafe_code_stays_where_it_is_known() {
    let known = [
        "bridge.rs",
        "bridge/loading.rs",
        "capi.rs",
        "capi/arrays.rs",
        "device/cuda.rs",
        "io/behind.rs",
        "io/map.rs",
        "load.rs",
        "progress.rs",
        "var_store.rs",
    ];
    let mut found: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| {
            text.contains("unsafe {") || text.contains("unsafe fn") || text.contains("unsafe extern")
        })
        .map(|(name, _)| name)
        .collect();
    found.sort();
    assert_eq!(found, known);
}
