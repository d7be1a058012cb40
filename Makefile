# Every developer verb. PYTHON names the interpreter of the environment with the test extras.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

# The extra mmseg, and what it needs beside the packages of the first environment.
MMSEG = onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmsegmentation==1.4.2 addict yapf termcolor ftfy prettytable regex wcwidth

.PHONY: install format check test test-fast test-zoo test-wheel test-lowest test-newest test-mmseg test-gpu soak fuzz bench bench-loop bench-data bench-kernels bench-models bench-compile bench-gpu bench-tables docs gpu build clean

install:            ## environment with the test extras
	python3 -m venv .venv
	.venv/bin/pip install -e ".[test]"
	.venv/bin/pre-commit install

format:             ## rewrite the code in the house style
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

check:              ## lint, types, floors, spelling
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(BIN)lint-imports
	$(BIN)codespell

test:               ## all tests but those of test-zoo
	$(PYTHON) -m pytest -n 2

test-fast:          ## tests of less than ten seconds each
	$(PYTHON) -m pytest -n 2 -m "not slow"

test-zoo:           ## all variants and records of the newer families, of which the others run the smallest
	$(PYTHON) -m pytest -n 2 -m zoo

test-gpu: gpu       ## tests that need a GPU
	$(PYTHON) -m pytest -m gpu

test-mmseg:         ## mmsegmentation's training on our backbones, in an environment beside the first one
	$(PYTHON) -m venv .venv-mmseg
	$(BIN)python -c 'import site; print(site.getsitepackages()[0])' > "$$(.venv-mmseg/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	.venv-mmseg/bin/pip install -q --no-deps $(MMSEG)
	.venv-mmseg/bin/python -m pytest -q -W ignore tests/mmseg/runs.py

test-wheel:         ## wheel and source distribution in environments of nothing but what they require
	$(PYTHON) -m pytest -q tests/release/installed.py

test-lowest:        ## the oldest Python and dependencies that pyproject.toml admits: downloads gigabytes
	$(call fresh,.venv-lowest,3.10,lowest-direct)

test-newest:        ## the newest of both
	$(call fresh,.venv-newest,3.13,highest)

# An environment by uv: its folder, Python, and the choice among versions.
define fresh
	$(PYTHON) -m pip install -q uv
	$(BIN)uv venv -q --clear --seed --python $(2) $(1)
	$(BIN)uv pip install -q --python $(1)/bin/python --resolution $(3) -e ".[test]"
	$(1)/bin/python -m pytest -n 2
endef

soak:               ## kills, signals, full disks and a lack of memory, many times; writes docs/reliability.md
	$(PYTHON) -m pytest -p no:xdist --soak tests/faults tests/cli tests/data

fuzz:               ## ten minutes of configs and checkpoints changed at random; exit code 1 at an internal fault
	$(PYTHON) tools/fuzz_configs.py --count 1000000 --seconds 300 --seed $$(date +%s)
	$(PYTHON) tools/fuzz_weights.py --count 1000000 --seconds 300 --seed $$(date +%s)

bench: bench-loop bench-data bench-kernels bench-models

bench-loop:         ## the trainer's step against a bare PyTorch loop
	$(PYTHON) tools/bench_loop.py

bench-data:         ## decoding and augmentation against torchvision
	$(PYTHON) tools/bench_data.py

bench-kernels:      ## attention operations against the usual ways to write them
	$(PYTHON) tools/bench_kernels.py --device cpu

bench-models:       ## models against timm, or on the operations as their authors write them
	$(PYTHON) tools/bench_models.py --device cpu

bench-compile:      ## CPU time in which torch.compile traces a model of each family
	$(PYTHON) tools/compile_time.py

bench-gpu: gpu      ## both of these on a GPU; exit code 1 if a goal is missed
	$(PYTHON) tools/bench_kernels.py --device cuda; kernels=$$?; \
	$(PYTHON) tools/bench_models.py --device cuda && exit $$kernels

bench-tables:       ## the tables of the documentation, from docs/benchmarks
	$(PYTHON) tools/bench_tables.py

docs:               ## the site of the documentation, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet --strict

gpu:
	@$(PYTHON) -c 'import torch, sys; sys.exit(None if torch.cuda.is_available() else "no CUDA device here: this needs a GPU")'

build:              ## wheel and source distribution
	$(PYTHON) -m build

clean:
	rm -rf build dist site *.egg-info .venv-lowest .venv-newest .venv-mmseg .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
