# `make` alone lists the targets.
PYTHON ?= python3
ENGINES ?= embedded
BIN := .venv/bin

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.locked: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Citylab needs Python 3.11 or newer; this is %s. Name another: make PYTHON=python3.12" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: .venv/.locked dashboards/static/index.html  ## prepare .venv with the command `citylab` in it

.PHONY: lock
lock:  ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet -o requirements.lock

dashboards/static/index.html: .venv/.locked $(shell find dashboards/live -type f -not -path '*/node_modules/*' 2>/dev/null)
	$(BIN)/python -m dashboards.build
	@touch $@

.PHONY: assets
assets: dashboards/static/index.html  ## build the live page from its lock file

.PHONY: references
references: setup  ## write docs/reference/ anew from the code
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/conformance_page.py

.PHONY: engines
engines:  ## install and start Mosquitto, Kafka and TimescaleDB natively (Debian, as root)
	$(PYTHON) deploy/engines.py install
	$(PYTHON) deploy/engines.py start

.PHONY: engines-stop
engines-stop:  ## stop them
	$(PYTHON) deploy/engines.py stop

.PHONY: demo
ifeq ($(ENGINES),real)
demo: setup engines  ## run the whole city: http://127.0.0.1:8000/ (ENGINES=real for the real engines)
	@env $$($(PYTHON) deploy/engines.py env) $(BIN)/citylab up $(ARGS)
else
demo: setup
	@$(BIN)/citylab up $(ARGS)
endif

.PHONY: test
test: setup browser  ## set up what tests need, and run all of them, in three processes since most wait
	@$(PYTHON) deploy/engines.py install && $(PYTHON) deploy/engines.py start || \
	  { [ "$$CITYLAB_REQUIRE_ENGINES" = 1 ] && exit 1 || \
	    printf '\n*** The real engines cannot be installed here: their tests are SKIPPED. ***\n\n'; }
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: unit
unit: setup  ## run the tests that need no engine
	$(BIN)/python -m pytest tests/unit tests/project $(ARGS)

.PHONY: browser
browser:  ## install Chromium where it is missing and may be installed
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  { [ "$$CITYLAB_REQUIRE_ENGINES" = 1 ] && exit 1 || \
	    printf '\n*** Chromium is missing and cannot be installed here: browser tests are SKIPPED. ***\n\n'; }

.PHONY: conformance
conformance: setup  ## run OGC's own test suite for SensorThings against the API (needs Java and Maven)
	PYTHONPATH=. $(BIN)/python tests/conformance/ets/run.py

.PHONY: lint
lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: check
check: lint test  ## what the checks run: format, lint, types, import rules, all tests

.PHONY: format
format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

