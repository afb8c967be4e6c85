//! The architecture, checked: who may know whom, and where `unsafe` may live.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

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

/// The module that `name`, which stands behind `crate::`, is or comes from.
fn module_of(name: &str) -> &str {
    match name {
        "Error" | "ErrorKind" | "Result" => "error",
        "Environment" => "environment",
        "Progress" => "progress",
        "Reader" => "model",
        "compare" | "convert" | "copy" | "explain" | "load" | "pack" | "repack" | "sign" | "verify" => "jobs",
        "capi" | "var_store" => "bindings",
        module => module,
    }
}

/// `text` without comments and tests.
fn code_of(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let tests = ["#[cfg(test)]\nmod tests", "#[cfg(all(test, "].iter().filter_map(|start| text.find(start));
    let tests = tests.min().unwrap_or(text.len());
    text[..tests].lines().map(code).collect::<Vec<_>>().join("\n")
}

type Names = Vec<String>;

/// The paths that a tree behind `use` stands for, as in `a::{b, c::{self, d}}`.
fn expanded(tree: &str) -> Vec<Names> {
    let (mut items, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, letter) in tree.char_indices().chain([(tree.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(tree[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    let paths = |item: &&str| {
        let (path, list) = item.split_once('{').map_or((*item, None), |(path, list)| (path, Some(list)));
        let path = path.split(" as ").next().unwrap_or_default().trim();
        let names: Names = path.split("::").filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect();
        let below = list.map_or_else(|| vec![vec![]], |list| expanded(list.rsplit_once('}').unwrap().0));
        let with = |below: Names| [names.clone(), below].concat();
        below.into_iter().map(with).collect::<Vec<_>>()
    };
    items.iter().filter(|item| !item.is_empty()).flat_map(paths).collect()
}

/// All that `code` uses: the paths of its `use` statements, and those that begin with `crate` or `super` elsewhere.
fn used(code: &str) -> Vec<Names> {
    let is_use = |line: &str| {
        let visible = line.trim_start().split_once("use ").map_or("-", |(visible, _)| visible).trim();
        matches!(visible, "" | "pub" | "pub(crate)" | "pub(super)")
    };
    let (mut statements, mut rest) = (String::new(), String::new());
    let mut within = false;
    for line in code.lines() {
        within |= is_use(line);
        (if within { &mut statements } else { &mut rest }).extend([line, "\n"]);
        within &= !line.contains(';');
    }
    let trees = statements.split(';').filter_map(|statement| Some(statement.split_once("use ")?.1));
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let starts = ["crate::", "super::"].into_iter().flat_map(|root| rest.match_indices(root));
    let path = |(start, _): (usize, _)| {
        let path = &rest[start..];
        &path[..path.find(|letter| !is_part(letter)).unwrap_or(path.len())]
    };
    trees.chain(starts.map(path)).flat_map(expanded).collect()
}

/// The modules, each with its file and what that uses.
struct Tree(BTreeMap<Names, (String, Vec<Names>)>);

impl Tree {
    fn read() -> Self {
        let module = |(file, text): (String, String)| {
            let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
            let names = path.split('/').filter(|name| *name != "lib").map(ToOwned::to_owned).collect();
            (names, (file, used(&code_of(&text))))
        };
        Self(sources().into_iter().map(module).collect())
    }

    /// The module that `path`, as code of `module` has it, leads to; of what that only passes on, the one it is from.
    fn home(&self, module: &[String], path: &[String]) -> Option<Names> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match &**first {
            "crate" => vec![],
            "super" => module[..module.len() - 1].to_vec(),
            "self" => module.to_vec(),
            _ => {
                rest = path;
                module.to_vec()
            }
        };
        let mut is_ours = first == "crate" || first == "super";
        while let Some((next, below)) = rest.split_first() {
            let child = [&*at, std::slice::from_ref(next)].concat();
            if next == "super" {
                at.pop();
            } else if self.0.contains_key(&child) {
                (at, is_ours) = (child, true);
            } else if next == "self" {
            } else {
                let (_, uses) = &self.0[&at];
                let passed_on = uses.iter().find(|path| path.last() == Some(next) && path.len() > 1);
                let passed_on = passed_on.filter(|_| at != module);
                return passed_on.and_then(|path| self.home(&at, path)).or(is_ours.then_some(at));
            }
            rest = below;
        }
        is_ours.then_some(at)
    }

    /// The modules of this crate that each one uses, but for those it is in.
    fn arrows(&self) -> BTreeMap<&Names, BTreeSet<Names>> {
        let arrows = |(module, (_, uses)): (_, &(String, Vec<Names>))| {
            let module: &Names = module;
            let homes = uses.iter().filter_map(|path| self.home(module, path));
            (module, homes.filter(|home| !module.starts_with(home)).collect())
        };
        self.0.iter().map(arrows).collect()
    }
}

fn names(path: &str) -> Names {
    path.split("::").map(ToOwned::to_owned).collect()
}

#[test]
fn what_code_uses_is_found() {
    let code =
        "pub use crate::{\n    error::{self, Error},\n    format::Index,\n};\nfn f(_: super::io::File) {}";
    let found = ["crate::error::self", "crate::error::Error", "crate::format::Index", "super::io::File"];
    assert_eq!(used(code), found.map(names));
    let tree = Tree::read();
    let home = |module: &str, path: &str| tree.home(&names(module), &names(path)).map(|it| it.join("::"));
    assert_eq!(home("plan::cut", "crate::io::Route::decide").as_deref(), Some("io::route"));
    assert_eq!(home("plan::cut", "super::place::Segment").as_deref(), Some("plan::place"));
    assert_eq!(home("plan::cut", "super::Chunk").as_deref(), Some("plan::chunk"));
    assert_eq!(home("plan::cut", "super::Settings").as_deref(), Some("plan"));
    assert_eq!(home("plan::cut", "std::fs::File"), None);
}

#[test]
fn modules_use_only_those_before_them_in_the_table() {
    let layers = layers();
    let rank = |module: &str| {
        layers.iter().position(|layer| layer == module).unwrap_or_else(|| panic!("no layer {module}"))
    };
    let mut wrong = Vec::new();
    for (module, (file, uses)) in Tree::read().0.iter().filter(|(module, _)| !module.is_empty()) {
        let above = uses.iter().filter(|path| path[0] == "crate").map(|path| module_of(&path[1]));
        wrong.extend(above.filter(|it| rank(it) > rank(&module[0])).map(|it| format!("{file} uses {it}")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn no_two_modules_use_each_other() {
    let tree = Tree::read();
    let mut arrows = tree.arrows();
    arrows.remove(&Names::new());
    assert!(arrows.values().map(BTreeSet::len).sum::<usize>() > 150, "the arrows were found");
    // A module comes free when all that it uses has; a module's children are not what it uses them for.
    while let Some(free) = arrows.iter().find(|(_, used)| used.iter().all(|it| !arrows.contains_key(it))) {
        let free = *free.0;
        arrows.remove(free);
    }
    assert!(arrows.is_empty(), "in circles, or above some: {:?}", arrows.keys());
}

#[test]
fn no_file_and_no_folder_is_too_long_to_take_in() {
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    for (file, text) in sources() {
        assert!(
            text.lines().count() <= 400,
            "{file} has more than 400 lines: give a part of it a file of its own"
        );
        *folders.entry(file.rsplit_once('/').unwrap_or_default().0.to_owned()).or_default() += 1;
    }
    folders.retain(|_, files| *files > 12);
    assert!(
        folders.is_empty(),
        "more than a dozen files: {folders:?}: give those that belong together a folder"
    );
}

#[test]
fn no_function_is_too_long_to_take_in() {
    let mut found = 0;
    for (file, text) in sources() {
        let code = code_of(&text);
        let lines: Vec<&str> = code.lines().map(str::trim_end).collect();
        for (at, line) in lines.iter().enumerate() {
            let words = line.trim_start();
            let is_function =
                words.starts_with("fn ") || words.contains(" fn ") && words.starts_with(['p', 'u', 'c']);
            let opens = || lines[at..].iter().find(|line| line.ends_with(['{', ';', '}']));
            if is_function && opens().is_some_and(|line| line.ends_with('{')) {
                let end = format!("{}}}", &line[..line.len() - words.len()]);
                let length = 1 + lines[at..].iter().position(|line| *line == end).expect("functions end");
                assert!(length <= 40, "{file}:{} is a function of {length} lines: name a part of it", at + 1);
                found += 1;
            }
        }
    }
    assert!(found > 1000, "only {found} functions were found");
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
        ("cxx::", "bindings/bridge.rs"),
        ("cudarc", "device/cuda/driver.rs"),
        ("no_mangle", "bindings/"),
        ("env::var", "environment.rs"),
        (" tch::", "bindings/var_store.rs"),
    ] {
        let strangers: Vec<_> = sources()
            .into_iter()
            .filter(|(name, text)| !name.starts_with(home) && text.contains(word))
            .map(|(name, _)| name)
            .collect();
        assert!(strangers.is_empty(), "{word} in {strangers:?}");
    }
}

#[test]
fn systems_differ_in_one_folder() {
    let words = ["rustix", "libc::", "os::unix", "os::fd", "\"/proc", "\"/sys", "target_os", "cfg(unix)"];
    // Stores and CUDA are for Linux alone; bindings pass descriptors and bytes of paths on.
    let others = ["os/", "remote/stores/", "device/cuda/", "bindings/"];
    let mut found = Vec::new();
    for (file, text) in sources() {
        let code = code_of(&text);
        if !others.iter().any(|folder| file.starts_with(folder)) {
            found.extend(
                words.iter().filter(|word| code.contains(**word)).map(|word| format!("{file}: {word}")),
            );
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

/// The names of the functions and constants that a file of `os` gives the rest, each with what it takes and gives.
fn given(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/os").join(file)).unwrap();
    let code = code_of(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    let items = code.split("pub(crate) ").skip(1).filter_map(|item| {
        let item = item.strip_prefix("const fn").or_else(|| item.strip_prefix("fn"))?;
        let (name, rest) = item.trim().split_once('(')?;
        let (takes, rest) = rest.split_once(')')?;
        let types = takes.split(',').filter_map(|argument| Some(argument.split_once(':')?.1.trim()));
        let gives = rest.split(['{', ';']).next()?.trim();
        Some(format!("{name}({}) {gives}", types.collect::<Vec<_>>().join(", ")))
    });
    items.collect()
}

#[test]
fn every_system_offers_the_same_functions() {
    let linux = ["files", "library", "memory", "mod", "new_files", "processors"];
    let linux: BTreeSet<_> = linux.iter().flat_map(|file| given(&format!("linux/{file}.rs"))).collect();
    assert!(linux.len() > 20, "the functions were found: {linux:?}");
    assert_eq!(linux, given("plain.rs"));
    assert_eq!(given("unix.rs"), given("windows.rs"));
}

#[test]
fn unsafe_code_stays_where_it_is_known() {
    let known = [
        "bindings/bridge.rs",
        "bindings/bridge/loading.rs",
        "bindings/bridge/packing.rs",
        "bindings/capi.rs",
        "bindings/capi/arrays.rs",
        "bindings/remote.rs",
        "bindings/var_store.rs",
        "device/cuda/caller.rs",
        "device/cuda/driver.rs",
        "device/cuda/handles.rs",
        "device/cuda/kept.rs",
        "device/cuda/mod.rs",
        "device/cuda/pinned.rs",
        "device/fetch.rs",
        "io/map.rs",
        "jobs/load.rs",
        "os/linux/files.rs",
        "os/linux/library.rs",
        "os/linux/memory.rs",
        "os/unix.rs",
        "progress.rs",
        "remote/library.rs",
        "remote/table.rs",
        "simd.rs",
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
