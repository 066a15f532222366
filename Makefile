# make run      set up everything and show the whole story on this machine
# make test     set up what the tests need and run them, without further cases of what others show
# make test-all every test there is
# make install  make .venv with the cloister command
# make check    static checks (make style, make types)
# make fast     unit and property tests only
# make coverage all tests but those of several processes, with a coverage report

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CI ?=
WITHOUT := not exhaustive
# One more at once than the two processors of our CI: some wait for another process while others compute. Files
# begin in the order of tests/longest.py, the longest first, each time the next by whoever is free.
BESIDE = -n 3 --dist loadfile --no-loadscope-reorder
export TORCH_INDEX_URL GPU
# Tests start many hundred processes: each would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=
# More tests than processors run at once: threads of theirs wait for each other, ten times as long as they compute.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: install run test test-all coverage fast check style types format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml deploy/constraints.txt deploy/install.sh
	PYTHON=$(PYTHON) bash deploy/install.sh $(VENV)
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c deploy/constraints.txt -e '.[test,check]'
	@touch $@

run: install
	$(BIN)/cloister demo

check: style types

style: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.tools
	$(BIN)/mypy

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fast: $(VENV)/.tools
	$(BIN)/pytest -n auto --dist loadfile -m 'not slow and not e2e and not exhaustive'

test: $(VENV)/.tools
	bash tests/peers.sh
	bash tests/twice.sh $(BESIDE) -m '$(WITHOUT)' --durations=25

test-all coverage: WITHOUT := e2e or not e2e
test-all: test

coverage: $(VENV)/.tools
	bash tests/peers.sh
	rm -f .coverage .coverage.*
	$(BIN)/pytest $(BESIDE) -m 'not e2e and ($(WITHOUT))' --cov --cov-report=term:skip-covered

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
