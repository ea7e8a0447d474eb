# Every target sets up what it needs in .venv; PYTHON=python3.12 make test chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench chaos lint format clean
.NOTPARALLEL: # the tests measure nothing, but their summary should be the last thing said

demo: $(READY)
	$(BIN)/procguard demo

test: $(READY)
	$(BIN)/python -m pytest -q -n logical --dist worksteal

check: lint test

bench: $(READY)
	$(BIN)/python -m benchmarks.detection
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.quorum
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.heal
	$(BIN)/python -m benchmarks.restart

chaos: $(READY)
	$(BIN)/python -m pytest -q -m "chaos or not chaos" tests/chaos
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m fuzz.codec
	$(BIN)/python -m fuzz.live

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# Stale when the dependencies change. The interpreter is checked first, because pip says it less clearly.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"ProcGuard needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. Say PYTHON=python3.11 make ...")'
	@echo 'Setting up $(VENV): about a minute, once.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
