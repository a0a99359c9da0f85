# Needs python3 (3.11 or later) and make; everything else is installed into .venv.

PYTHON ?= python3
VENV   := .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-beside test-alone test-slow test-slow-beside test-slow-alone test-long lint format docs bench lock clean

demo: $(READY)  ## synthetic lesions -> search -> final test -> runs/demo/report.html
	$(BIN)/lesionsearch demo

test: test-beside test-alone  ## the quick tests

test-slow: test-slow-beside test-slow-alone  ## the tests that take minutes

# Files side by side, JOBS at a time; what measures time runs by itself.
test-beside: $(READY)
	$(BIN)/python -m pytest -m "not slow and not alone and not long" -n $(JOBS) --dist loadfile

test-alone: $(READY)
	$(BIN)/python -m pytest -m "not slow and alone and not long"

test-slow-beside: $(READY)
	$(BIN)/python -m pytest -m "slow and not alone and not long" -n $(JOBS) --dist loadfile

test-slow-alone: $(READY)
	$(BIN)/python -m pytest -m "slow and alone and not long"

test-long: $(READY)  ## the longest: chaos in full, and a SLURM of its own where it is installed
	$(BIN)/python -m pytest -m long

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## docs/options.md, made from the tables
	$(BIN)/lesionsearch options --markdown > docs/options.md

bench: $(READY)  ## measurements; results under bench/results/ are from named machines
	$(BIN)/python -m bench.overhead

# Pins of every platform, without addresses: whichever index is set up here serves them.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-annotate --no-header \
	  --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

# Compiled once at install: importing torch otherwise pays for it where bytecode is not kept.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
