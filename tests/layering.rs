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

/// The modules of the crate in the order of the table in lib.rs.
fn layers() -> Vec<String> {
    let (_, lib) = sources().into_iter().find(|(name, _)| name == "lib.rs").unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next());
    let modules = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let layers: Vec<_> = modules.map(ToOwned::to_owned).collect();
    let declared = lib.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    for module in declared.map(|module| module.trim_end_matches(';')) {
        let listed = layers.iter().filter(|layer| *layer == module).count();
        assert_eq!(listed, 1, "lib.rs's table lists the module {module} {listed} times");
    }
    layers
}

/// The module that a path from the crate's root begins with.
fn module_of(name: &str) -> &str {
    match name {
        "Error" | "ErrorKind" | "Result" => "error",
        "Environment" => "options",
        "Progress" => "progress",
        "Reader" => "reader",
        module => module,
    }
}

/// What stands behind each `crate::` of `code`: one name, or those of a list in braces.
fn used(code: &str) -> Vec<&str> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let word = |text: &str| text.find(|letter| !is_part(letter)).unwrap_or(text.len());
    let mut names = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let path = &code[start + "crate::".len()..];
        let Some(list) = path.strip_prefix('{') else {
            names.push(&path[..word(path)]);
            continue;
        };
        let (mut depth, mut from) = (0, 0);
        for (at, letter) in list.char_indices() {
            if depth == 0 && (letter == ',' || letter == '}') {
                let item = list[from..at].trim_start();
                names.push(&item[..word(item)]);
                from = at + 1;
            }
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// `text` without comments.
fn code_of(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

#[test]
fn names_behind_the_root_of_the_crate_are_found() {
    let code = "use crate::{\n    error::{At, Error},\n    format::Index,\n};\nfn f(_: crate::Result<crate::io::File>) {}";
    assert_eq!(used(code), ["error", "format", "Result", "io"]);
}

#[test]
fn modules_use_only_those_before_them_in_the_table() {
    let layers = layers();
    let rank = |module: &str| {
        layers.iter().position(|layer| layer == module).unwrap_or_else(|| panic!("no layer {module}"))
    };
    let mut wrong = Vec::new();
    for (name, text) in sources().iter().filter(|(name, _)| name != "lib.rs") {
        let own = name.split(['/', '.']).next().unwrap();
        let code = code_of(text);
        let above = used(&code).into_iter().map(module_of).filter(|module| *module != own);
        wrong.extend(above.filter(|it| rank(it) > rank(own)).map(|it| format!("{name} uses {it}")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn pure_layers_touch_no_system() {
    let none: [String; 0] = [];
    assert_eq!(offenders("format/", &["std::fs", "std::io"]), none);
    assert_eq!(offenders("plan/", &["std::fs", "std::io", "thread::"]), none);
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
        "bridge/packing.rs",
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
