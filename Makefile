# Every target builds its own environment in .venv when that is missing or stale.
# Fields of an experiment: make fig9 ARGS="--trials 50 --tau 0.5 1 5"

PYTHON ?=
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
ARGS ?=
# An experiment is a file with a TITLE; its name is the file's.
experiments_of = $(subst _,-,$(notdir $(basename $(shell grep -l '^TITLE =' experiments/$(1)/*.py))))
FIGURES := $(filter fig%,$(call experiments_of,feature_model))
NETWORKS := $(call experiments_of,networks)
EXPERIMENTS := $(call experiments_of,*)

.DEFAULT_GOAL := help
.PHONY: help setup figures networks notebooks animation report record test test-slow test-versions cluster-test lint format docs dist address
.PHONY: clean
# Each command uses all cores by itself, benchmarks need them alone, and networks share a folder.
.NOTPARALLEL:
.PHONY: $(EXPERIMENTS)

help:  ## This list
	@echo "make TARGET [ARGS=\"--field value ...\"]     (durations on two cores, after setup)"
	@awk -F ':.*## ' '/^[a-z0-9 $$()_-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk -F '"' 'FNR == 1 { name = FILENAME; sub(".*/", "", name); sub(".py$$", "", name); gsub("_", "-", name) } \
		/^TITLE =/ { title = $$2 } /^DURATION =/ { printf "  %-20s %s (%s)\n", name, title, $$2 }' \
		$(wildcard experiments/*/*.py) | sort -V

setup: $(READY)  ## Build the environment in .venv alone (2 minutes)

$(EXPERIMENTS): $(READY)
	@$(BIN)/python -m experiments $@ $(ARGS)

bench: bench-solvers bench-networks bench-metrics

figures: $(FIGURES)  ## All figures of the unconstrained feature model (7 min)

networks: $(NETWORKS)  ## All experiments on networks, at laptop scale (15 min)

notebooks: $(READY)  ## Execute the notebooks and keep their outputs (2 min)
	$(BIN)/python notebooks/execute.py $(ARGS)

animation: $(READY)  ## The animation of the README: docs/images/collapse.gif (1 min)
	$(BIN)/python docs/animation.py

report: $(READY)  ## One page of all results: results/index.html (10 s)
	@$(BIN)/python -m experiments report $(ARGS)

record: $(READY)  ## Keep the results in docs/results.md and docs/record (10 s)
	@$(BIN)/python -m experiments record $(ARGS)

# Most of these tests' time is compiling, and what they compile runs once. The slow ones compile as users do.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
test: export XLA_FLAGS += --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

test: $(READY)  ## Tests without the slow ones (4 to 8 min)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 40 --durations-min 5 $(ARGS)

test-slow: $(READY)  ## The slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-versions:  ## The tests on Python 3.11 to 3.13, with oldest and newest dependencies (30 min)
	@python3 tests/versions.py $(ARGS)

cluster-test: $(READY)  ## Two processes of four devices each on this machine, and one of them killed (3 min)
	$(BIN)/python -m pytest -m slow tests/test_processes.py $(ARGS)

lint: $(READY)  ## Linters, formatting, types, and which way imports point (30 s)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v actionlint >/dev/null; then actionlint; \
	else echo "actionlint is not installed: the workflows of .github are not checked."; fi

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## Documentation with search, and a reference from the source: site/index.html (30 s)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(READY)  ## Wheel and sdist in dist/, checked for PyPI (30 s)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

address:  ## Write the repository's owner into all files that name it: make address OWNER=name
	@python3 docs/address.py $(OWNER)

clean:  ## Remove the environment and caches, keep results
	rm -rf $(VENV) .venv-3.* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Ready means: a Python that still runs, and every package of these two files installed.
$(shell $(BIN)/python -c '' 2>/dev/null || rm -f $(READY))
$(READY): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python=$$candidate; break; \
	    fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.11 or newer found; name one with 'make PYTHON=/path/to/python ...'." >&2; \
	  exit 2; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then "$$python" -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
