# make run      set up everything and show the whole story on this machine
# make test     set up what the tests need and run them, without further cases of what others show
# make test-all every test there is
# make install  make .venv with the cloister command
# make check    static checks
# make fast     unit and property tests only
# make coverage all tests but those of several processes, with a coverage report

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CI ?=
WITHOUT := not exhaustive
COMPUTING = -n 2 --dist loadfile --no-loadscope-reorder -m 'not e2e and ($(WITHOUT))'
SEVERAL = -n 2 --dist loadfile -m 'e2e and ($(WITHOUT))'
export TORCH_INDEX_URL GPU
# Tests start many hundred processes: each would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=
# As many tests as processors run at once: threads of theirs wait for each other, ten times as long as they compute.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: install run test test-all coverage fast check format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml deploy/constraints.txt deploy/install.sh
	PYTHON=$(PYTHON) bash deploy/install.sh $(VENV)
	@touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c deploy/constraints.txt -e '.[test,check]'
	@touch $@

run: install
	$(BIN)/cloister demo

check: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fast: $(VENV)/.tools
	$(BIN)/pytest -n auto --dist loadfile -m 'not slow and not e2e and not exhaustive'

# Two passes: what computes, in the order of the files, since the longest are not those with the most tests; then what
# starts several processes, the files with the most tests first, each time the next by whoever is free.
test: $(VENV)/.tools
	bash tests/peers.sh
	bash tests/twice.sh computing $(COMPUTING) --durations=15
	bash tests/twice.sh several $(SEVERAL) --durations=15

test-all coverage: WITHOUT := e2e or not e2e
test-all: test

coverage: $(VENV)/.tools
	bash tests/peers.sh
	rm -f .coverage .coverage.*
	$(BIN)/pytest $(COMPUTING) --cov --cov-report=term:skip-covered

clean:
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
