# `make` lists the tasks. All they install goes into $(VENV); PYTHON chooses the interpreter it is made from.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPP := $(shell find cpp tests benches examples -name '*.c' -o -name '*.cpp' -o -name '*.h' 2>/dev/null)
NATIVE := Cargo.toml Cargo.lock build.rs setup.py $(shell find src cpp -type f)
# The same headers and folders as the build uses, so that linting compiles no C++ of its own.
TORCH_DIR = $$($(BIN)/python -c 'import setup; print(setup.torch_dir())')
CLIPPY = cargo clippy --quiet --all-targets

.PHONY: help build test lint fmt demo mutations bench reliability wheel sdist clean

help: ## list the tasks
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: $(VENV)/.built ## make $(VENV) with pinned tools and install the package into it, editable

test: build ## run the Rust tests, then the Python tests on the installed package
	cargo test --quiet --features cuda
	$(BIN)/python -m pytest

lint: $(VENV)/.tools ## check format, lints and types of Rust, C++ and Python
	cargo fmt --check
	$(CLIPPY) -- -D warnings
	$(CLIPPY) --release --features capi --target-dir target/capi -- -D warnings
	FLASHPACK_TORCH_DIR=$(TORCH_DIR) $(CLIPPY) --release --features torch --target-dir target/torch -- -D warnings
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fmt: $(VENV)/.tools ## format all sources in place
	cargo fmt
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

demo: build ## pack and load a real model
	$(BIN)/python examples/demo.py

mutations: build ## break the CUDA engine on purpose; fails unless the tests notice each time
	$(BIN)/python tests/mutations.py

bench: build $(VENV)/.bench ## run the Rust benchmarks, then the Python ones (an hour; BENCH=--quick: a minute)
	cargo bench
	$(BIN)/python benches/python/many_tensors.py
	$(BIN)/python benches/python/emulated_transfer.py
	$(BIN)/python benches/python/run.py $(BENCH)

reliability: build ## attack loads and saves, those of 0.4.5 and safetensors too (ten minutes)
	rm -rf target/faults && mkdir -p target/faults
	LD_PRELOAD=$$($(BIN)/python tests/python/faultio.py) $(BIN)/python tests/python/fault_programs.py target/faults
	$(BIN)/python tests/python/hostile_files.py
	$(BIN)/python tests/python/crash_points.py
	$(BIN)/python tests/python/torn_reads.py

wheel: $(VENV)/.tools ## build a wheel into dist/
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

sdist: $(VENV)/.tools ## build a source distribution into dist/
	$(BIN)/python -c 'import setup; setup.build_sdist("dist")'

clean: ## remove what was built (and keep the tools in $(VENV))
	rm -rf target dist python/*.egg-info python/flashpack/_lib/*.so $(VENV)/.built

$(VENV)/.tools: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

$(VENV)/.bench: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@
