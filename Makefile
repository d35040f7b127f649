# `make help` lists the targets. Every target that needs .venv creates it first, if it is missing or outdated.

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# These are Accelerate's defaults. Without them it prints a warning for each; your own commands do not need them.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

FAULTS := $(addprefix tests/,integration/test_poison.py integration/test_restarts.py integration/test_lost_ranks.py \
    integration/test_damage.py integration/test_derived_files.py integration/test_interruption.py integration/test_object_storage.py \
    storage/test_waiting.py)

.PHONY: help setup fill sweep report test test-cases test-slow test-faults test-s3 test-ray test-slurm test-nodes fuzz soak check \
    coverage docs generated release bench notebooks clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

setup: $(READY) ## Create .venv, and install everything into it

fill: $(READY) ## Fill 16 drawn scenes with the embedded model; needs no GPU, no account and no downloaded weights
	$(LAUNCH) -m fluxexp +experiment=fill $(ARGS)

sweep: $(READY) ## Sweep steps and guidance of the embedded model; the report says how many steps are enough
	$(LAUNCH) -m fluxexp -m +experiment=steps $(ARGS)

report: $(READY) ## Write the HTML report of the newest run or sweep, or of RUN=DIR; for a run also a contact sheet
	$(BIN)/python -m fluxexp.report $(RUN) $(ARGS)

test: $(READY) ## Run the tests that need no GPU and take less than 5 s each
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore tests/cases $(ARGS)

test-cases: $(READY) ## Run inputs and commands that failed for users
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal tests/cases $(ARGS)

test-slow: $(READY) ## Run the other tests: training, the compiler, benchmarks, launchers, ranks that die, more variants
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "slow and not (gpu or ray or slurm or nodes)" $(addprefix --ignore ,$(FAULTS)) $(ARGS)

test-faults: $(READY) ## Run the tests that kill, suspend and restart ranks, fill disks, and damage results
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "slow and not gpu" $(FAULTS) $(ARGS)

test-ray: $(READY) ## Install Ray, and run the tests of engine=ray with several raylets on this machine
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray]"
	$(BIN)/python -m pytest -m ray tests/integration/test_ray.py $(ARGS)

test-slurm: $(READY) ## Run the tests of fluxexp.submit with a real Slurm (as root; apt-get install slurm-wlm munge)
	$(BIN)/python -m pytest -m slurm tests/integration/test_slurm.py $(ARGS)

test-nodes: $(READY) ## Run the tests of several machines, in network namespaces (as root)
	$(BIN)/python -m pytest -m nodes tests/integration/test_nodes.py $(ARGS)

test-s3: $(READY) ## Run the tests of object storage on a local S3 server, and print the numbers of requests
	$(BIN)/python -m pytest -q -s -m "" tests/storage/test_s3.py tests/integration/test_object_storage.py $(ARGS)

fuzz: $(READY) ## Make N=10000 random cases of each kind (commands, manifests, ...); SEED=0
	$(BIN)/python -m tests.fuzz --num $(or $(N),10000) --seed $(or $(SEED),0) $(ARGS)

soak: $(READY) ## Kill ranks at random times (KILLS=1000) and check that no image is lost, doubled or torn; takes an hour
	$(BIN)/python -m tests.soak --kills $(or $(KILLS),1000) $(ARGS)

check: $(READY) ## Check lint, format, spelling, types and layers, the Dockerfile, the docs, and that every config composes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/conf

generated: $(READY) ## Write the files again that are made from declarations: tables and reference in docs/, JSON schemas, presets
	$(BIN)/python -m tools.config_docs
	$(BIN)/python -m tools.family_docs
	$(BIN)/python -m tools.optimization_docs

docs: $(READY) ## Build the docs site into site/; a broken link is an error. `make docs ARGS=serve` shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --strict)

coverage: $(READY) ## Measure the coverage of `make test`, write it to htmlcov/, and fail below the floor in pyproject.toml
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore tests/cases --cov --cov-report html --cov-report term:skip-covered $(ARGS)

release: $(READY) ## Build wheel and sdist into dist/, check them, and run the embedded model from the wheel in a fresh environment
	$(BIN)/python -m tools.release $(ARGS)

bench: $(READY) ## Compare the time per image of the diffusers recipe, other tools and fluxexp; on a CPU with the embedded model
	$(BIN)/python benchmarks/images.py $(ARGS)

notebooks: $(READY) ## Execute the notebooks in examples/, and store their outputs
	$(BIN)/python -m tools.notebooks $(ARGS)

clean: ## Remove results and caches, but not .venv
	rm -rf outputs multirun/*/ build dist site htmlcov .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
