//! With the feature `torch`: compiles `src/bindings/bridge.rs` and `cpp/*.cpp` against torch's stable ABI.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "torch")]
    torch::build();
}

#[cfg(feature = "torch")]
mod torch {
    use std::path::{Path, PathBuf};
    use std::process::{Command, exit};
    use std::{env, fs};

    /// The oldest torch the library runs on (2.11), as torch's headers want it.
    const TARGET_VERSION: &str = "0x020B000000000000";
    const HEADER: &str = "include/torch/headeronly/version.h";
    /// Set by setup.py when it links for an older glibc than this machine's.
    const PORTABLE: &str = "FLASHPACK_PORTABLE";
    const FIND_TORCH: &str = "import importlib.util as u; s = u.find_spec('torch'); \
                              print(s.submodule_search_locations[0] if s else '')";

    pub(super) fn build() {
        println!("cargo::rerun-if-env-changed=FLASHPACK_TORCH_DIR");
        println!("cargo::rerun-if-env-changed={PORTABLE}");
        println!("cargo::rerun-if-changed=src/bindings/bridge.rs");
        println!("cargo::rerun-if-changed=cpp");
        let torch = torch_dir();
        println!("cargo::rerun-if-changed={}", torch.join(HEADER).display());
        compile(&torch);
        link_to_stubs(&["torch", "torch_cpu"]);
    }

    /// The folder of the torch package.
    fn torch_dir() -> PathBuf {
        let dir = env::var_os("FLASHPACK_TORCH_DIR").map_or_else(ask_python, PathBuf::from);
        if !dir.join(HEADER).is_file() {
            println!(
                "cargo::error=torch's C++ headers were not found: install torch >= 2.11 for the python3 \
                 on PATH, or set FLASHPACK_TORCH_DIR to the folder of the torch package."
            );
            exit(1);
        }
        dir
    }

    fn ask_python() -> PathBuf {
        let answer = Command::new("python3").args(["-c", FIND_TORCH]).output();
        let path = answer.map(|a| String::from_utf8_lossy(&a.stdout).trim().to_owned());
        PathBuf::from(path.unwrap_or_default())
    }

    fn compile(torch: &Path) {
        let include = torch.join("include");
        cxx_build::bridge("src/bindings/bridge.rs")
            .files(sources("cpp"))
            .files(env::var_os(PORTABLE).map_or_else(Vec::new, |_| sources("cpp/portable")))
            .std("c++20")
            .opt_level(2)
            .define("TORCH_TARGET_VERSION", TARGET_VERSION)
            .warnings(true)
            .extra_warnings(true)
            .flag("-isystem")
            .flag(&include)
            .flag("-fvisibility=hidden")
            .flag("-fvisibility-inlines-hidden")
            .link_lib_modifier("+whole-archive") // nothing calls the static registrars of the operators
            .compile("flashpack_cpp");
    }

    fn sources(folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("cpp/ is part of the source tree");
        let paths = entries.map(|entry| entry.expect("cpp/ is readable").path());
        let mut sources: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "cpp")).collect();
        sources.sort();
        sources
    }

    /// Makes the library need `lib<name>.so` at run time. It is linked to empty libraries of the
    /// same names, so that torch's own, and the CUDA they need, play no part in the build.
    fn link_to_stubs(names: &[&str]) {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let source = out.join("stub.c");
        fs::write(&source, "").expect("OUT_DIR is writable");
        println!("cargo::rustc-link-arg=-Wl,-Bsymbolic,--no-as-needed");
        for name in names {
            let stub = out.join(format!("lib{name}.so"));
            let compiled = cc::Build::new()
                .get_compiler()
                .to_command()
                .args(["-shared", "-fPIC", "-nostdlib"])
                .arg(format!("-Wl,-soname,lib{name}.so"))
                .arg("-o")
                .args([&stub, &source])
                .status();
            assert!(
                compiled.is_ok_and(|status| status.success()),
                "the C compiler could not make {}",
                stub.display()
            );
            println!("cargo::rustc-link-arg={}", stub.display());
        }
        println!("cargo::rustc-link-arg=-Wl,--as-needed");
    }
}
