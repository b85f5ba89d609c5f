# `make demo` and `make test` set up everything they need by themselves; nothing has to be run before them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test setup browser services lint types bench soak lock clean

# The interpreter that .venv is made from: `make demo PYTHON=python3.12`.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.tallymark-ready
ENGINES := .venv/.tallymark-engines

help: ## What can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: setup ## Server, dashboard, a shop under load, this machine's own figures; Ctrl-C ends it
	@exec $(PY) -m tallymark demo

test: $(ENGINES) browser services lint types ## Every check: lint, types, tests, the dashboard in a headless browser
	@$(PY) -m pytest -n auto --dist loadfile

setup: $(READY)

# Redone only when what is to be installed has changed.
$(READY): requirements.lock pyproject.toml hatch_build.py src/tallymark/_core.c scripts/setup-venv.sh
	@PYTHON=$(PYTHON) scripts/setup-venv.sh requirements.lock
	@touch $@

$(ENGINES): $(READY) requirements-engines.lock
	@PYTHON=$(PYTHON) scripts/setup-venv.sh requirements-engines.lock
	@touch $@

browser:
	@scripts/setup-browser.sh

services:
	@scripts/setup-services.sh

lint: $(ENGINES) ## ruff check, ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

types: $(ENGINES) ## mypy, strict
	@$(PY) -m mypy

bench: $(ENGINES) ## The figures of docs/performance.md, measured here
	@$(PY) -m bench

soak: $(ENGINES) ## The crash tests, ten times as long
	@TALLYMARK_SOAK=1 $(PY) -m pytest --timeout 7200 tests/test_crash.py

lock: ## Resolve requirements.lock anew (needs uv)
	@uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --group dev --upgrade \
	    --generate-hashes --no-emit-index-url --no-header --output-file requirements.lock
	@uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --group dev --group engines \
	    --constraint requirements.lock --upgrade \
	    --generate-hashes --no-emit-index-url --no-header --output-file requirements-engines.lock
	@sed -i '1i # Made by `make lock` from pyproject.toml; installs with pip and with uv.' requirements*.lock

clean: ## Remove what the other targets made
	rm -rf .venv src/tallymark/_core*.so demo-metrics dist build test-results .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
