# Two commands do all the set-up from a fresh clone: `make serve` and `make test`.
PYTHON ?= python3
ENGINE := $(if $(GPU),gpu,cpu)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: serve test lint types contracts check setup setup-dev clean help

help:
	@echo "make serve [GPU=1] [ARGS='...']  install what is missing and start the server on 127.0.0.1:8000"
	@echo "make test                        install what is missing and run all tests that need no GPU"
	@echo "make check                       lint, types and import contracts"

serve: setup
	@exec $(BIN)/amalgam serve $(ARGS)

test: setup-dev
	@deploy/test_services.sh $(BIN)/python -m pytest -m "not gpu" $(ARGS)

check: lint types contracts

lint: setup-dev
	@$(BIN)/ruff format --check server tests loadtests deploy
	@$(BIN)/ruff check server tests loadtests deploy

types: setup-dev
	@$(BIN)/mypy

contracts: setup-dev
	@$(BIN)/lint-imports

setup: $(VENV)/bin/rich-ready
	@$(BIN)/python deploy/set_up.py $(ENGINE)

setup-dev: $(VENV)/bin/rich-ready
	@$(BIN)/python deploy/set_up.py $(ENGINE) dev

# `rich` first, so that the long installation that follows can show what it is doing.
$(VENV)/bin/rich-ready:
	@echo "Making the virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "rich>=15,<16"
	@touch $@

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
