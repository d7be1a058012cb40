# Every developer verb. PYTHON names the interpreter of the environment with the test extras.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: install format check test test-fast bench bench-loop bench-data bench-models build clean

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

test:               ## all tests
	$(PYTHON) -m pytest -n 2

test-fast:          ## tests of less than ten seconds each
	$(PYTHON) -m pytest -n 2 -m "not slow"

bench: bench-loop bench-data bench-models

bench-loop:         ## the trainer's step against a bare PyTorch loop
	$(PYTHON) tools/bench_loop.py

bench-data:         ## decoding and augmentation against torchvision
	$(PYTHON) tools/bench_data.py

bench-models:       ## Swin against timm
	$(PYTHON) tools/bench_models.py

build:              ## wheel and source distribution
	$(PYTHON) -m build

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
