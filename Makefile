# Every target builds its own environment in .venv when that is missing or stale.
# Fields of an experiment: make fig9 ARGS="--trials 50 --tau 0.5 1 5"

PYTHON ?=
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
ARGS ?=
UFM_FIGURES := fig3 fig5 fig5-lbfgs fig5-start fig7 fig8 fig9 fig11 fig12 fig13
LANDSCAPE := landscape landscape-window landscape-conditions focal-map softmax-codes
RATES := rates temperature metric class-sizes
NETWORKS := fig4 fig6 fig10 table2
MODELS := regularized-minima minority-collapse deep
OTHERS := large bench bench-solvers bench-networks

.DEFAULT_GOAL := help
.PHONY: help setup figures networks notebooks report record test test-slow test-versions cluster-test lint format docs dist address
.PHONY: clean
.PHONY: $(UFM_FIGURES) $(LANDSCAPE) $(RATES) $(MODELS) $(NETWORKS) $(OTHERS)

help:  ## This list
	@echo "make TARGET [ARGS=\"--field value ...\"]     (durations on two cores, after setup)"
	@awk -F ':.*## ' '/^[a-z0-9 $$()_-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Build the environment in .venv alone (2 minutes)

fig3: $(READY)  ## Figure 3: found minima against Theorem 1 (30 s)
fig5: $(READY)  ## Figure 5: normalized against regularized, gradient descent (40 s)
fig5-lbfgs: $(READY)  ## The same under L-BFGS (45 s)
fig5-start: $(READY)  ## Figures 5, 7, 8 against the scale of the start (70 s)
fig7: $(READY)  ## Figure 7: the same under conjugate gradients (45 s)
fig8: $(READY)  ## Figure 8: the same under the trust region (80 s)
fig9: $(READY)  ## Figure 9: collapse over temperatures (10 s)
fig11: $(READY)  ## Figure 11: focal loss, found minima against collapse (30 s)
fig12: $(READY)  ## Figure 12: label smoothing, and where its minimum leaves collapse (30 s)
fig13: $(READY)  ## Figure 13: supervised contrastive loss against its minimum (30 s)
landscape: $(READY)  ## Theorem 2 tested on thousands of saddles (3 min)
landscape-window: $(READY)  ## The loss on planes through a saddle, and the ways down (20 s)
landscape-conditions: $(READY)  ## Spurious minima, where the theorem's conditions end (90 s)
focal-map: $(READY)  ## Where collapse is proved optimal for the focal loss (30 s)
softmax-codes: $(READY)  ## More classes than dimensions: minima against packings (2 min)
rates: $(READY)  ## Local rates of collapse, measured and predicted (30 s)
temperature: $(READY)  ## The best temperature, measured and predicted (90 s)
metric: $(READY)  ## Figures 5, 7, 8 in two metrics and over decays (2 min)
class-sizes: $(READY)  ## Which metric to use for classes of unequal sizes (20 s)
regularized-minima: $(READY)  ## The regularized UFM: minima, closed forms, certificates (90 s)
minority-collapse: $(READY)  ## When the rows of small classes become one, against its threshold (40 s)
deep: $(READY)  ## Deep UFM: linear minima, and ReLU models layer by layer (80 s)
fig4: $(READY)  ## Figure 4: networks of several widths on random labels (5 min)
fig6: $(READY)  ## Figure 6: normalized against regularized ResNets, few samples (4 min)
fig10: $(READY)  ## Figure 10: ResNet-18 over temperatures (3 min)
table2: $(READY)  ## Table 2: test accuracy and test NC1 of four networks (3 min)
large: $(READY)  ## One problem of 1000 classes and 100,000 samples, in blocks (3 min)
bench: bench-solvers bench-networks  ## Speed: the two below, then steps against pymanopt and the product peak (15 min)
bench-solvers: $(READY)  ## Time to a solution, beside optax, pymanopt and GeoJAX (8 min)
bench-networks: $(READY)  ## Speed of training networks, against PyTorch if it is there (3 min)

$(UFM_FIGURES) $(LANDSCAPE) $(RATES) $(MODELS) $(NETWORKS) $(OTHERS):
	@$(BIN)/python -m experiments $@ $(ARGS)

figures: $(UFM_FIGURES)  ## All figures of the unconstrained feature model (6 min)

networks: $(NETWORKS)  ## All experiments on networks, at laptop scale (15 min)

notebooks: $(READY)  ## Execute the notebooks and keep their outputs (2 min)
	$(BIN)/python notebooks/execute.py $(ARGS)

report: $(READY)  ## One page of all results: results/index.html (10 s)
	@$(BIN)/python -m experiments.report $(ARGS)

record: $(READY)  ## Keep the results in docs/results.md and docs/record (10 s)
	@$(BIN)/python -m experiments.record $(ARGS)

test: $(READY)  ## Tests without the slow ones (7 min)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

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
	if ! $(BIN)/python -c '' 2>/dev/null; then $$python -m venv --clear $(VENV); fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
