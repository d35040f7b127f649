# `make help` lists the targets. fill and test set up all they need, and are quick when it is there already.

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Accelerate's own defaults, spelt out, as it warns about each that is not; real runs need none of them.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help setup fill sweep report test test-slow check bench clean

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

setup: $(READY) ## Virtual environment in .venv, with everything installed

fill: $(READY) ## The main job on an embedded default: fill 16 drawn scenes; no GPU, no account, no download of weights
	$(LAUNCH) -m fluxexp +experiment=fill $(ARGS)

sweep: $(READY) ## How many steps are enough? A small sweep on the embedded default, with a page that answers
	$(LAUNCH) -m fluxexp -m +experiment=steps $(ARGS)

report: $(READY) ## HTML report of the newest run or sweep, or of RUN=DIR; of a run a contact sheet, too
	$(BIN)/python -m fluxexp.report $(RUN) $(ARGS)

test: $(READY) ## The tests that need no GPU and take less than 10 s each
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: $(READY) ## The rest: training, the compiler, benchmarks, other launchers
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "slow and not gpu" $(ARGS)

check: $(READY) ## Lint, format, types, layers, and every config composes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/conf

bench: $(READY) ## Seconds an image, start to file: the documented recipe, faster peers, fluxexp; on a CPU with the embedded model
	$(BIN)/python benchmarks/fill.py $(ARGS)

clean: ## Remove results and caches; the virtual environment stays
	rm -rf outputs multirun/*/ build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
