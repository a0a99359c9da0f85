# Requires python3 (3.11 or later) and make; everything else is installed into .venv.

PYTHON ?= python3
VENV   := .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-beside test-alone test-slow test-slow-beside test-slow-alone test-long test-gpu lint format docs bench lock clean

demo: $(READY)  ## search on synthetic lesions; writes runs/demo/report.html
	$(BIN)/lesionsearch demo

test: test-beside test-alone  ## the quick tests

test-slow: test-slow-beside test-slow-alone  ## the tests that take minutes

# Test files run in parallel, JOBS at a time; tests marked 'alone' run by themselves.
test-beside: $(READY)
	$(BIN)/python -m pytest -m "not slow and not alone and not long and not gpu" -n $(JOBS) --dist loadfile

test-alone: $(READY)
	$(BIN)/python -m pytest -m "not slow and alone and not long and not gpu"

test-slow-beside: $(READY)
	$(BIN)/python -m pytest -m "slow and not alone and not long and not gpu" -n $(JOBS) --dist loadfile

test-slow-alone: $(READY)
	$(BIN)/python -m pytest -m "slow and alone and not long and not gpu"

test-long: $(READY)  ## the longest tests: a long study under random faults, and SLURM if it is installed
	$(BIN)/python -m pytest -m long

test-gpu: $(READY)  ## tests that need a CUDA GPU; skipped without one
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## write docs/options.md from the tables
	$(BIN)/lesionsearch options --markdown > docs/options.md

bench: $(READY)  ## measure the overhead of the search; more in bench/
	$(BIN)/python -m bench.overhead

# Pins for all platforms, without addresses: they are installed from the configured index.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-annotate --no-header \
	  --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

# Compile bytecode at installation: importing torch is slow without it.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
