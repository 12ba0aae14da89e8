# make demo | test | build | wheel | lint | bench | bench-cpp | cuda-all | test-full | test-neon | test-clients | docs.
# Everything lives in the tree: .venv, build.
#   ARGS="--quick"   options for the demo and the benchmarks
#   TORCH=2.15.0     another torch, in an environment and a build folder of its own
#   TORCHES="2.13.0 2.14.1"  the versions that make wheel builds for (default: that of requirements/torch.txt)
#   ISA="baseline;avx2"  these instruction sets alone, for daily work; all without it. Another list configures again
#   CUDA=OFF         no CUDA kernels; ON: an error where nvcc is missing; CUDA_ARCHS="80;90" these architectures alone
#   WERROR=ON        warnings are errors (the default where CI is set)
PYTHON ?= python3
DEFAULT_TORCH := $(shell sed -n 's/^torch==//p' requirements/torch.txt)
TORCH ?= $(DEFAULT_TORCH)
TORCHES ?= $(DEFAULT_TORCH)
JOBS ?= $(shell nproc)
WERROR ?= $(if $(CI),ON,OFF)
ISA ?=
CUDA ?= AUTO
CUDA_ARCHS ?= $(if $(CI),80;90,80;86;89;90)

torch_suffix = $(if $(filter-out $(DEFAULT_TORCH),$(1)),-torch$(1))
SUFFIX := $(call torch_suffix,$(TORCH))
VENV := .venv$(SUFFIX)
BUILD := build$(SUFFIX)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export FULGURITE_BUILD_DIR := $(BUILD)
SOURCES := python tests examples setup.py docs/_ext $(wildcard docs/*.py)
CXX_SOURCES = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

.PHONY: demo test test-full test-neon test-clients bench bench-cpp cuda-all build build-tests wheel lint lint-quick docs clean FORCE
.DELETE_ON_ERROR:

demo: build $(VENV)/.demo
	python -m fulgurite.demo $(ARGS)

test: build-tests $(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.wheel
	scripts/test.sh $(BUILD)

# Exhaustive grids, then changed kernels that their tests must notice, then the kernels and their tests under ASan and UBSan.
test-full: build-tests $(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.wheel
	FULGURITE_FULL=1 scripts/test.sh $(BUILD)
	python scripts/mutants.py tests/cuda_on_host/product.cuh tests/cuda_on_host/product_test.cpp
	for kernel in csrc/cuda/search.h csrc/cuda/table.cuh csrc/optim/cuda/kernels/*.cuh; do \
	  python scripts/mutants.py $$kernel tests/cuda_on_host/optim/*_test.cpp --beside csrc/optim/cpu/kernels/*.cpp || exit 1; \
	done
	scripts/sanitize.sh $(BUILD)-sanitize

# Kernels and their tests cross-compiled for arm64, under qemu-user.
test-neon:
	JOBS=$(JOBS) scripts/test_neon.sh

# Released classes: all of transformers' here, timm's, diffusers' and the trainers in an environment of their own.
test-clients: build $(VENV)/.demo $(VENV)/.test
	FULGURITE_FULL=1 OMP_NUM_THREADS=1 python -m pytest tests/python/integrations
	@[ -x .venv-clients/bin/python ] || $(PYTHON) -m venv .venv-clients
	PATH=$(CURDIR)/.venv-clients/bin:$$PATH scripts/pip.sh torch==$(TORCH) -r requirements/clients.txt
	PYTHONPATH=python:tests/python:tests/clients OMP_NUM_THREADS=1 .venv-clients/bin/python -m pytest tests/clients

bench: build $(VENV)/.demo $(VENV)/.test
	python -m fulgurite.bench $(ARGS)

build: $(BUILD)/build.ninja
	cmake --build $(BUILD) --parallel $(JOBS)
	@cmake --install $(BUILD) --prefix python/fulgurite >/dev/null
	@$(MAKE) --no-print-directory $(VENV)/.fulgurite

# Programs that time kernels, without torch: build/benchmarks/cpp/bench_<family>.
bench-cpp: $(BUILD)/build.ninja
	cmake -S . -B $(BUILD) -DFULGURITE_BENCHMARKS=ON >/dev/null
	cmake --build $(BUILD) --parallel $(JOBS) --target benchmarks

build-tests: $(BUILD)/.tests
	@$(MAKE) --no-print-directory build

# One wheel for every Python and all of TORCHES, with all instruction sets; then the README's first example in bare environments.
wheel: $(VENV)/.wheel
	for torch in $(TORCHES); do $(MAKE) --no-print-directory build TORCH=$$torch ISA= || exit; done
	wheel=$$(scripts/wheel.sh dist $(foreach torch,$(TORCHES),build$(call torch_suffix,$(torch)))) && \
	  scripts/try_wheel.sh $(PYTHON) $$wheel $(TORCHES)

# The kernels alone for every architecture that is released: counts into cuda-budgets.json and the page made from it.
cuda-all: $(VENV)/.torch
	cmake -S . -B $(BUILD)-cuda-all -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python -DFULGURITE_WERROR=$(WERROR) \
	  -DFULGURITE_CUDA=ON '-DFULGURITE_CUDA_ARCHS=80;86;89;90;100;120'
	cmake --build $(BUILD)-cuda-all --parallel $(JOBS) --target fulgurite_cuda_kernels fulgurite_cuda_uncalled
	python scripts/cuda_budgets.py $(BUILD)-cuda-all --write

# clang-tidy reads the list of what is compiled, so that has to name files, not units of them. Kernels stand in it once for each
# instruction set; these two have all types and nearly every branch of csrc/simd.
lint: lint-quick
	cmake -S . -B $(BUILD)-tidy -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python -DFULGURITE_UNITY=OFF -DFULGURITE_CUDA=OFF \
	  $(if $(filter x86_64,$(shell uname -m)),'-DFULGURITE_ISAS=baseline;amx')
	run-clang-tidy.py -quiet -j $(JOBS) -p $(BUILD)-tidy '$(CURDIR)/csrc/.*'

lint-quick: $(VENV)/.lint $(VENV)/.demo $(VENV)/.test
	clang-format --dry-run --Werror $(CXX_SOURCES)
	ruff check $(SOURCES)
	ruff format --check $(SOURCES)
	mypy

docs: build $(VENV)/.docs $(VENV)/.demo
	python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(BUILD) $(BUILD)-sanitize $(BUILD)-tidy $(BUILD)-cuda-all docs/_build

# ---- the environment ----
$(VENV)/.torch: requirements/torch.txt requirements/build.txt
	scripts/system.sh $(PYTHON)
	[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	scripts/pip.sh torch==$(TORCH) -r requirements/build.txt
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.wheel: $(VENV)/.%: requirements/%.txt $(VENV)/.torch
	scripts/pip.sh torch==$(TORCH) -r $<
	@touch $@

# ---- the build: ninja runs cmake again by itself when a CMake file changes ----
$(BUILD)/build.ninja: $(VENV)/.torch $(BUILD)/.choices
	cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python -DFULGURITE_WERROR=$(WERROR) \
	  $(if $(ISA),'-DFULGURITE_ISAS=$(ISA)',-UFULGURITE_ISAS) -DFULGURITE_CUDA=$(CUDA) '-DFULGURITE_CUDA_ARCHS=$(CUDA_ARCHS)'
	@touch $@

# Changes only when one of them does.
$(BUILD)/.choices: FORCE
	@mkdir -p $(BUILD)
	@echo '$(ISA) $(CUDA) $(CUDA_ARCHS)' | cmp -s - $@ || echo '$(ISA) $(CUDA) $(CUDA_ARCHS)' >$@
FORCE:

$(BUILD)/.tests: $(BUILD)/build.ninja
	cmake -S . -B $(BUILD) -DFULGURITE_TESTS=ON
	@touch $@

# The package as an editable installation; its CMake half finds everything built.
$(VENV)/.fulgurite: setup.py pyproject.toml $(VENV)/.torch
	scripts/pip.sh --no-build-isolation --no-deps -e .
	@touch $@
