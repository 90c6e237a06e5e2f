# make demo: set up and run the main job on generated data. make test: checks and tests. make results: benchmarks' page.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all check results setup clean

demo: $(READY)
	$(BIN)/consortium demo

# Many small models: a thread each is fastest, and two processes.
test test-all: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-all: check
	$(BIN)/python -m pytest -m "not gpu"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

results: $(READY)
	$(BIN)/python benchmarks/results.py

setup: $(READY)

# Built again when a dependency changes. The constraints hold for the build environments of source packages too.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) runs
