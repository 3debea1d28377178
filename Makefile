# One verb set for people and CI. `make setup` installs what is missing once; every other target depends on it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SEED  ?= $(shell date +%s)
# One more than the processors: tests often wait, for a pause or a process that they start.
JOBS  ?= $(shell n=$$(nproc); echo $$(( n >= 8 ? 8 : n + 1 )))

.PHONY: help setup demo test test-long check bench clean

help:
	@echo "make demo       the main job on a real data set: add, two versions, mount, train, a pipeline, fsck, a remote"
	@echo "make test       the test suite, randomised parts sampled (under 8 minutes on 2 cores)"
	@echo "make test-long  everything in full"
	@echo "make check      ruff and mypy"
	@echo "make bench      figures against DVC, ext4, squashfs, EROFS, Borg, restic, rclone and s3fs"

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup
	@bash .ci/setup $(VENV)
	@touch $@

demo: setup
	@$(PY) -m bench.demo

test: setup
	@echo "seed: $(SEED)"
	@$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "not long" -p no:cacheprovider --hypothesis-seed=$(SEED) $(ARGS)

test-long: setup
	@bash .ci/setup-long
	@echo "seed: $(SEED)"
	@MILLPOND_TESTS=long $(PY) -m pytest -q -n $(JOBS) --dist worksteal -p no:cacheprovider --hypothesis-seed=$(SEED) --timeout=1800 $(ARGS)

check: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

bench: setup
	@bash .ci/setup-bench
	@$(PY) -m bench.run $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
