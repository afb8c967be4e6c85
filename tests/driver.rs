//! Which library answers as the CUDA driver: one that is built here for each test, in a process of its own.
#![cfg(feature = "cuda")]

use std::{env, fs, path::Path, process::Command};

use flashpack::device::cuda::Cuda;

/// What the toolkit's stub returns.
const STUB_LIBRARY: u32 = 34;

/// The functions that the engine needs, as its table lists them.
fn functions() -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/driver.rs");
    let text = fs::read_to_string(source).unwrap();
    let (_, table) = text.split_once("\nfunctions! {\n").unwrap();
    let names =
        table.lines().take_while(|line| *line != "}").map(|line| line.trim().split('(').next().unwrap());
    names.map(ToOwned::to_owned).collect()
}

/// A library of functions that all return `status`, called `libcuda.so.1` inside, as drivers and stubs are.
fn build(path: &Path, functions: &[String], status: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let source = path.with_extension("c");
    let function = |name: &String| format!("int {name}(void) {{ return {status}; }}");
    let code = functions.iter().map(function).collect::<Vec<_>>().join("\n");
    fs::write(&source, code).unwrap();
    let mut cc = Command::new("cc"); // what rustc links with
    cc.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(path).arg(source);
    assert!(cc.status().unwrap().success());
}

/// What [`the_driver`] prints when libraries are looked for in these folders first.
fn outcome(folders: &[&Path]) -> String {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "the_driver", "--nocapture"]);
    child.env("LD_LIBRARY_PATH", env::join_paths(folders).unwrap());
    let done = child.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

#[test]
#[ignore = "for the other tests, which say where it finds a driver"]
fn the_driver() {
    // SAFETY: nothing is to be filled.
    match unsafe { Cuda::new(0, 0, vec![]) } {
        Ok(_) => println!("it works"),
        Err(error) => println!("{:?}: {error}", error.kind()),
    }
}

#[test]
fn a_stub_that_comes_first_in_the_library_path_is_not_taken_for_the_driver() {
    let folder = tempfile::tempdir().unwrap();
    let (stubs, lib) = (folder.path().join("stubs"), folder.path().join("lib"));
    build(&stubs.join("libcuda.so"), &functions(), STUB_LIBRARY);
    build(&lib.join("libcuda.so.1"), &functions(), 0);
    let said = outcome(&[&stubs, &lib]);
    assert!(said.contains("it works"), "{said}");
}

#[test]
fn a_stub_in_the_drivers_place_is_told_for_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    build(&folder.path().join("libcuda.so.1"), &functions(), STUB_LIBRARY);
    let said = outcome(&[folder.path()]);
    assert!(
        said.contains("Unsupported: the libcuda.so.1 that was found is the CUDA toolkit's stub"),
        "{said}"
    );
}

#[test]
fn a_function_that_the_driver_lacks_is_an_error_that_names_it() {
    let all = functions();
    assert!(all.len() > 15, "the functions were found: {all:?}");
    let folder = tempfile::tempdir().unwrap();
    for lacking in ["cuMemHostUnregister", "cuEventRecord"] {
        let others: Vec<_> = all.iter().filter(|name| *name != lacking).cloned().collect();
        build(&folder.path().join("libcuda.so.1"), &others, 0);
        let said = outcome(&[folder.path()]);
        assert!(said.contains(&format!("Unsupported: the CUDA driver lacks {lacking}")), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
