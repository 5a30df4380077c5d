# Everything a developer runs. Needs Python 3.11+, git and make; the rest is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
SUITES := unit lua store sim api e2e chaos
# The benchmark and the examples are checked like the rest.
SOURCES := sidecar tests $(wildcard bench examples)

.DEFAULT_GOAL := help
.PHONY: help install run format check test test-real soak chaos bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "inferadb-sidecar needs Python 3.11 or newer as '$(PYTHON)'; try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

install: $(STAMP) ## Create .venv and install the sidecar with what its tests need

# exec: Ctrl-C and SIGTERM reach the demo itself, which then ends its nodes in order.
run: $(STAMP) ## Start two regions in the foreground (ARGS="--regions 3 --ephemeral")
	@exec $(BIN)/sidecar demo $(ARGS)

format: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix --exit-zero --quiet $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)

test: check ## check, then every suite, with the seconds of each (ARGS goes to pytest)
	@$(BIN)/python tests/run_suites.py $(SUITES) -- $(ARGS)

test-real: $(STAMP) ## What operators do, the docs, and real databases, Prometheus and browser; fetches what it can
	@$(BIN)/python -m tests.real.fetch
	@$(BIN)/python tests/run_suites.py operating real -- $(ARGS)

soak: $(STAMP) ## The long random runs
	$(BIN)/python -m pytest -m soak tests $(ARGS)

# exec: Ctrl-C reaches the run itself, which then ends its nodes.
chaos: $(STAMP) ## Two minutes of faults, and the checkers (ARGS="--seconds 600 --seed 7")
	@exec $(BIN)/python -m tests.chaos $(ARGS)

bench: $(STAMP) ## Ratios of speed, each with its floor (ARGS=--json)
	@$(BIN)/python -m bench $(ARGS)

clean: ## Remove .venv, caches and builds; keeps ./data
	rm -rf $(VENV) .real_cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sidecar tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
