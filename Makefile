# The only door: people and CI use the same targets. All share .venv, made on first use.
#
#   .venv/.dependencies   tools/setup_venv.py installed what pyproject.toml names, as constraints.txt pins it
#   .venv/.package        this tree is installed there (a copy, as users get it), again after every change

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules

PYTHON ?=
TORCH_INDEX ?=
TESTS ?=
CHECKPOINT ?=
BENCH ?=
CPU ?= cortex-a72
ICOUNT ?=

# Debian and Ubuntu names of what some tests use beside Python; nothing else needs them.
SYSTEM_PACKAGES := openssh-client openssh-server strace iproute2 zsh fish tcsh g++ g++-aarch64-linux-gnu \
    qemu-system-arm qemu-user qemu-utils mmdebstrap e2fsprogs kmod cpio gzip device-tree-compiler

# The Debian release whose libonnxruntime-dev has the headers: 1.21, which later libraries serve as well; from apt's own mirror.
HEADERS_SUITE ?= trixie
DEBIAN_MIRROR ?=

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := merino_edge exporters device_profiles
SOURCES := $(shell find $(PACKAGES) -type f ! -name '*.pyc' | sort)

# Older runtimes, each in a folder of its own below build/runtimes/, that tests run exported files in.
# onnxruntime: the newest for Python 3.8 and 3.9, and for 3.10.
OLD_RUNTIMES := ai-edge-litert==1.4.0 ai-edge-litert==2.1.6 tflite-runtime==2.14.0 \
    onnxruntime==1.19.2 onnxruntime==1.23.2

.PHONY: help demo demo-model test test-board test-faults check bench peers other-tools docs board board-down setup clean purge old-runtimes onnxruntime-headers system-packages test-wheel dist FORCE

help: ## Show this list
	@echo 'usage: make TARGET [VARIABLE=value]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12   the interpreter .venv is made with (3.11 or newer; found by itself otherwise)'
	@echo '  TORCH_INDEX=URL     take torch from this index, for instance the one of the CPU builds'
	@echo '  TESTS="tests/words -x"   what `make test` runs, and how'
	@echo '  FAULT_SEED=7 FAULT_SHARE=0.1  other places, and a tenth of the faults, for `make test-faults`'
	@echo '  BENCH="ring presets"  some scripts of bench/ for `make bench`; --list names them; --fresh begins anew'
	@echo '  CPU=cortex-a76      the core that `make board` emulates; ICOUNT=1: its clock counts instructions'
	@echo '  CPUS="cortex-a53"   the cores that `make test-board` goes round on (cortex-a72 and cortex-a76)'

demo: $(VENV)/.package ## Run the whole job here: profile, search, train, export, deploy, measure (10 minutes at most)
	@$(BIN)/python bench/demo.py

demo-model: $(VENV)/.package ## Train the demo model from the corpus in MERINO_EDGE_DATA and pack it with its card (CHECKPOINT=FOLDER packs one)
	@$(BIN)/python bench/demo_model.py $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)')

test: $(VENV)/.package ## Run the tests against the installed package, two at a time (WORKERS=2), then those that watch a clock
	@first=0; $(BIN)/pytest -n $(or $(WORKERS),2) --dist loadfile -m 'not alone' $(TESTS) || first=$$?; \
	case $$first in 0|1|5) ;; *) exit $$first;; esac; \
	second=0; $(BIN)/pytest -m alone $(TESTS) || second=$$?; \
	if [ $$first = 5 ]; then exit $$second; fi; \
	if [ $$second = 5 ]; then exit $$first; fi; \
	exit $$(( first > second ? first : second ))  # 5: no test of this kind was asked for

test-faults: $(VENV)/.package ## Run the fault campaigns whole: kills, power cuts, broken disks and networks (an hour or so)
	@FAULT_SHARE=$(or $(FAULT_SHARE),1) FAULT_SEED=$(or $(FAULT_SEED),1) FAULT_RECORDS=$(abspath build/faults) \
	    $(BIN)/pytest tests/faults --durations=0

test-board: $(VENV)/.package ## Boot emulated aarch64 boards and go round the ring on them over SSH (minutes each)
	@$(BIN)/python tools/board/side_by_side.py '$(or $(CPUS),cortex-a72 cortex-a76)' $(TESTS)

test-wheel: $(VENV)/.package ## Build sdist and wheel, and use the wheel in a fresh environment without torch (150 MB to download)
	@WHEEL_TEST=1 $(BIN)/pytest tests/wheel

dist: $(VENV)/.package ## Build sdist and wheel into dist/
	@rm -rf dist; $(BIN)/python -m build --no-isolation --outdir dist . > /dev/null; rm -rf build/lib build/bdist.*; ls dist

board: $(VENV)/.package ## Build and boot an emulated aarch64 board, and say how to reach it
	@$(BIN)/python tools/board/emulator.py up --cpu $(CPU) $(if $(ICOUNT),--icount)

board-down: ## End the emulated board
	@python3 tools/board/emulator.py down

check: $(VENV)/.package ## Lint, check the format, and type-check every installed file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_types.py

bench: $(VENV)/.package ## Regenerate the README's figures, going on where it stopped (BENCH=--list: what, and how long each takes)
	@$(BIN)/python bench/regenerate.py $(BENCH)

peers: $(VENV)/.package ## Measure beside other tools and rewrite docs/peers.md (first time an hour and 9 GB, then 20 minutes)
	@$(BIN)/python bench/peers.py --setup
	@$(BIN)/python bench/peers.py

other-tools: $(VENV)/.package ## Generate from exported files in onnxruntime-genai, optimum and transformers.js (1 GB to download)
	@$(BIN)/python bench/other_tools.py

docs: $(VENV)/.package ## Build the site of docs/ into build/site, every warning an error; rewrite what is generated there
	@$(BIN)/python tools/cli_reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo 'build/site/index.html (its search needs a server: python3 -m http.server -d build/site)'

setup: $(VENV)/.package ## Make .venv and stop there

clean: ## Remove build outputs, caches and the demo's runs; keep .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find $(PACKAGES) bench tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

purge: clean ## The same, .venv, the image of the emulated board, and the environments of `make peers`
	rm -rf $(VENV) .board .peers

old-runtimes: $(VENV)/.dependencies ## Fetch older runtimes that some tests run files in (500 MB in build/runtimes)
	@for r in $(OLD_RUNTIMES); do folder=build/runtimes/$${r/==/-}; [ ! -d $$folder ] || continue; echo "fetching $$r"; \
	    rm -rf $$folder.tmp; case $$r in tflite-runtime*) numpy='numpy<2';; *) numpy=numpy;; esac; \
	    if $(BIN)/pip install --quiet --disable-pip-version-check --no-input --no-warn-conflicts --only-binary=:all: --target $$folder.tmp \
	        $$r "$$numpy"; then mv $$folder.tmp $$folder; \
	    else rm -rf $$folder.tmp; echo "no wheels of $$r for this Python: its tests are skipped"; fi; done

onnxruntime-headers: ## Fetch the headers of onnxruntime for the C++ example's test (Debian, Ubuntu; 100 KB in build/)
	@command -v dpkg-deb apt-get > /dev/null || { echo 'no apt-get here: name the headers with ORT_INCLUDE=FOLDER'; exit 1; }
	@mirror='$(DEBIAN_MIRROR)'; \
	[ -n "$$mirror" ] || mirror=$$(apt-get indextargets --format '$$(REPO_URI)' | grep -m 1 '/debian/*$$'); \
	[ -n "$$mirror" ] || { echo 'apt names no mirror of Debian here: DEBIAN_MIRROR=URL, or name the headers with ORT_INCLUDE=FOLDER'; exit 1; }; \
	place=$(abspath build)/headers.tmp; rm -rf $$place; mkdir -p $$place/lists/partial $$place/archives/partial; \
	echo "deb $$mirror $(HEADERS_SUITE) main" > $$place/sources.list; cd $$place; \
	own="-o Dir::Etc::sourcelist=$$place/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$$place/lists \
	    -o Dir::Cache=$$place -o APT::Sandbox::User="; \
	apt-get -q $$own update && apt-get -q $$own download libonnxruntime-dev && dpkg-deb -x libonnxruntime-dev_*.deb tree && \
	rm -rf ../onnxruntime-include && mv tree/usr/include/onnxruntime ../onnxruntime-include && rm -rf $$place

system-packages: ## Install the system packages some tests use (Debian, Ubuntu; as root)
	@missing=; for p in $(SYSTEM_PACKAGES); do \
	    [ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then echo 'system packages: all there'; exit; fi; \
	if ! command -v apt-get > /dev/null; then \
	    echo "no apt-get here: install what matches$$missing yourself; tests that need them are skipped until then"; exit 1; fi; \
	as_root=; if [ "$$(id -u)" != 0 ]; then as_root=sudo; fi; \
	echo "installing$$missing"; \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing

# The first of these that is new enough makes .venv; an existing .venv is kept.
$(VENV)/bin/python:
	@for p in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	        exec $$p tools/setup_venv.py create $(VENV); fi; done; \
	echo 'merino-edge needs Python 3.11 or newer, and found $(or $(PYTHON),none):' \
	    "$$($(or $(PYTHON),python3) --version 2>&1)" >&2; \
	echo '  next: install one and name it: make PYTHON=/path/to/python3.12 TARGET' >&2; exit 1

$(VENV)/.dependencies: pyproject.toml constraints.txt tools/setup_venv.py $(if $(TORCH_INDEX),FORCE) | $(VENV)/bin/python
	@GOALS='$(MAKECMDGOALS)' $(BIN)/python tools/setup_venv.py install --torch-index '$(TORCH_INDEX)'
	@touch $@

# Changes only when a file comes or goes, so that a deleted module leaves .venv too.
$(VENV)/.sources: FORCE | $(VENV)/bin/python
	@echo '$(SOURCES)' > $@.new; if cmp -s $@ $@.new; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.package: $(SOURCES) pyproject.toml $(VENV)/.sources $(VENV)/.dependencies
	@rm -rf build/lib build/bdist.*
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build/lib build/bdist.* && touch $@

FORCE:
