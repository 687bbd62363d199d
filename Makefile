# Two commands do all the set-up from a fresh clone: `make serve` and `make test`.
PYTHON ?= python3
ENGINE := $(if $(GPU),gpu,cpu)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
UNCLOSED := -W default::ResourceWarning -W default::pytest.PytestUnraisableExceptionWarning

.PHONY: serve cluster ray test test-slow test-models test-clients test-cluster lint types contracts site check constraints docs docs-serve setup setup-dev clean help
# Says of mkdocs that it has a successor, on every run.
export NO_MKDOCS_2_WARNING := 1

help:
	@echo "make serve [GPU=1] [ARGS='...']  install what is missing and start the server on 127.0.0.1:8000"
	@echo "make cluster                     PostgreSQL, an S3 server, engines on Ray and two servers, on this machine"
	@echo "make test                        install what is missing and run the tests that need no GPU and share one engine"
	@echo "make test-slow                   install what is missing and run the tests that start engines of their own, or take long"
	@echo "make test-clients                install what is missing and run the suites of more Python clients"
	@echo "make test-cluster                install Ray and run the tests of engines in processes of their own"
	@echo "make test-models                 check tiny models of many families, some in a server each"
	@echo "make check                       lint, types, import contracts and the manual's site"
	@echo "make docs                        write the generated tables of the manual"
	@echo "make docs-serve                  show the manual as a site on 127.0.0.1:8001"

serve: setup
	@exec $(BIN)/amalgam serve $(ARGS)

# Everything on loopback, in a temporary folder; Ctrl-C ends it.
cluster: setup-dev ray
	@exec $(BIN)/python deploy/cluster.py $(ARGS)

ray:
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints-$(ENGINE).txt -c deploy/constraints-ray.txt -e ".[ray]"

test: setup-dev
	@deploy/test_services.sh deploy/run_tests.sh $(BIN)/python $(ARGS)

# Apart from `make test`, because these start engines of their own, drive a browser, cut databases off, or draw requests at random.
# What is left open fails none of these: it is seen when memory is collected, in whatever test that happens.
test-slow: setup-dev
	@deploy/test_services.sh deploy/run_tests.sh $(BIN)/python --slow $(UNCLOSED) $(ARGS)

# Apart from `make test`, because the clients' own environment and its suites take some minutes.
test-clients: setup-dev
	@AMALGAM_TEST_PYTHON_CLIENTS=1 $(BIN)/python -m pytest -m clients tests/e2e $(ARGS)

# Apart from `make test`, because it installs Ray, and starts one with replicas. Ray leaves processes to the collector.
test-cluster: setup-dev ray
	@$(BIN)/python -m pytest -m cluster tests/cluster $(UNCLOSED) $(ARGS)

# Apart from `make test`, because it installs what models that see and hear need, and starts a server for each model.
test-models: setup-dev
	@$(BIN)/python -m amalgam.cli.install_torchvision
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints-models.txt av num2words
	@AMALGAM_TEST_MODELS=1 $(BIN)/python -m pytest tests/models $(UNCLOSED) $(ARGS)

check: lint types contracts site

lint: setup-dev
	@$(BIN)/ruff format --check server tests loadtests deploy docs
	@$(BIN)/ruff check server tests loadtests deploy docs

types: setup-dev
	@$(BIN)/mypy

contracts: setup-dev
	@$(BIN)/lint-imports

site: setup-dev
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/mkdocs build --strict # with --quiet it counts no warnings

docs: setup-dev
	@$(BIN)/python docs/generate.py

docs-serve: docs
	@$(BIN)/mkdocs serve --strict --dev-addr 127.0.0.1:8001

# After a change of pyproject.toml: the CPU's from what the tests ran with, the GPU's from what pip resolves.
constraints: setup-dev
	@$(BIN)/python deploy/constraints.py installed cpu
	@$(BIN)/python deploy/constraints.py resolved gpu

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
