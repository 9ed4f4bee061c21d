# One door for every habit. Each target does its own set-up, in .venv, and does it once.
#
#   PYTHON      the interpreter for .venv: Python 3.11, on which everything was run
#   PIP_ARGS    reaches pip: an index of your own, --find-links, -v to watch it work
#   PYTEST_ARGS reaches pytest: a file, -k, -x
#   LONG_ARGS   reaches the long forms: --only soak
#   BENCH_ARGS  names benchmarks: train draw gateway
#   FUZZ_ARGS   reaches the fuzzing: --seconds 60, --seed 7
#   FAULTS_ARGS reaches the faults: --only broker, --short
#   SOAK_ARGS   reaches the soak: --seed 7, --minutes 10
#   HOSTILE_ARGS reaches the rude key: --minutes 5, --only heads
#   LOCK_ARGS   reaches uv when it makes the lock files: --upgrade, an index of your own
#   CPU_LOCK_ARGS the same, for the images without a card: where torch's CPU builds are
#   CPU_PIP_ARGS reaches pip when a release is tried: where torch's CPU builds are
#   SCALE_ARGS  reaches the scale: --only sqlite, --most 1000
#   CARD_ARGS   reaches the card's report: --only probe children, --device cuda:1

PYTHON ?= $(firstword $(shell command -v python3.11) python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
FUZZ_ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=
LONG_ARGS ?=
SOAK_ARGS ?=
HOSTILE_ARGS ?=
LOCK_ARGS ?=
CPU_LOCK_ARGS ?=
CPU_PIP_ARGS ?=
SCALE_ARGS ?=
CARD_ARGS ?=

# Hundreds of processes start in the tests: without its cache, each compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

# Each stamp is newer than the two files that decide what is installed, or pip runs again.
RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
FUZZ    := $(VENV)/.fuzz-installed
BENCH   := $(VENV)/.bench-installed
RELEASE := $(VENV)/.release-installed
UV      := $(VENV)/.uv-installed

CARD    := $(VENV)/card/.installed

# The clients that the tests drive, apart from .venv: what they need is theirs alone.
CLIENTS     := $(VENV)/.clients-installed
CLIENT_PINS := $(addprefix tests/clients/,python/requirements.txt python/constraints.txt node/package.json node/package-lock.json)

# The console's page: npm's lock file pins what makes it, and what it is made of.
CONSOLE       := services/gateway/console
CONSOLE_PAGE  := $(CONSOLE)/dist/index.html
CONSOLE_PARTS := $(CONSOLE)/node_modules/.package-lock.json

# The page is a comfort: all else works without it, and / says how to get it.
MAYBE_CONSOLE  = ! command -v npm >/dev/null || $(MAKE) --no-print-directory console || echo "The console was not built."

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help console demo test unit test-long coverage lint types arch check bench bench-card card scale fuzz faults soak hostile examples docs pages screens screenshots release images lock format clean servers

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name what; do printf '  make %-12s%s\n' "$$name" "$$what"; done

demo: $(RUNTIME)  ## Train a tiny model, draw with it, leave the images in ./demo-output
	@$(MAYBE_CONSOLE)
	$(BIN)/everydream demo

# The page's tests run beside the others, which at first keep one core alone busy.
test: servers $(DEV) $(CLIENTS) console  ## Every test that needs no graphics card, the long forms left out
	@npm --prefix $(CONSOLE) run --silent test & page=$$!; \
	$(BIN)/pytest -m "not gpu and not long" --numprocesses auto $(PYTEST_ARGS); tests=$$?; \
	wait $$page || { echo "The page's tests failed: their output is above."; exit 1; }; exit $$tests

console: $(CONSOLE_PAGE)  ## Build the page at /; needs Node.js 20 or newer

unit: $(DEV)  ## The tests that need no server, in a minute
	$(BIN)/pytest tests/unit -m "not long" --numprocesses auto $(PYTEST_ARGS)

test-long: servers $(DEV) $(CLIENTS) console  ## The long forms, for a release; says at its end what it ran
	$(BIN)/python -m tests.long $(LONG_ARGS)

coverage: servers $(DEV) $(CLIENTS) console  ## What the tests reach of the product, by lines and branches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not gpu and not long" --numprocesses auto $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(DEV)  ## Style, format and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

types: $(DEV)  ## mypy, strict, over product, tests and examples
	$(BIN)/mypy

arch: $(DEV)  ## Who may import whom
	$(BIN)/lint-imports

check: lint types arch docs test  ## lint, types, arch, docs and test: what a change must pass

bench: servers $(BENCH)  ## Measure speed
	$(BIN)/python -m bench $(BENCH_ARGS)

# In an environment of its own: a card's torch is not the one of the other tests.
card:  ## Look at a graphics card, in ten minutes; writes card-report/ to send in
	@$(PYTHON) -m bench.card.present
	@$(MAKE) --no-print-directory $(CARD)
	$(VENV)/card/bin/python -m bench.card $(CARD_ARGS)

bench-card:  ## Speed and memory on a graphics card, in ten minutes; writes its part of docs/performance.md
	@$(PYTHON) -m bench.card.present
	@$(MAKE) --no-print-directory $(CARD)
	$(VENV)/card/bin/python -m bench.on_card

scale: servers $(DEV)  ## A gateway with up to 100,000 live jobs; writes its table in docs/performance.md
	SCALE_ARGS="$(SCALE_ARGS)" $(BIN)/python -m bench scale

fuzz: $(FUZZ)  ## Ten minutes of hostile bytes for each reader; writes docs/fuzzing.md
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

faults: servers $(DEV)  ## Every fault of docs/reliability.md in its long form; writes its table
	$(BIN)/python -m tests.faults $(FAULTS_ARGS)

soak: servers $(DEV)  ## Hundreds of jobs under random faults; writes its part of docs/reliability.md
	$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

hostile: servers $(DEV)  ## One rude key beside another that works; writes its part of docs/security.md
	$(BIN)/python -m tests.hostile $(HOSTILE_ARGS)

examples: $(DEV)  ## Write the answers of the API examples anew, and the documents that show them
	$(BIN)/python -m tests.support.examples_story
	$(BIN)/python -m services.gateway.api_documents docs

docs: $(DEV)  ## Build the documents as a site in dist/documents; a broken link is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --conf-dir docs --builder html . dist/documents

pages: servers examples  ## Write what docs/ has from the code, and the pages that are measured
	$(BIN)/python -m tests.support.card_memory_table
	$(BIN)/python -m tests.support.metrics_table
	$(BIN)/python -m bench schedulers
	OMP_NUM_THREADS=1 TRACING_PAGE=docs/tracing.md $(BIN)/pytest -q -n 0 tests/end_to_end/test_main_job.py -k posted_zip
	OMP_NUM_THREADS=1 LIVE_SAMPLES_PAGE=docs/live-samples.md $(BIN)/pytest -q -n 0 tests/end_to_end/test_samples.py

screens: servers $(DEV)  ## Write the screens in docs/command-line.md as a terminal shows them
	SCREENS_PAGE=docs/command-line.md $(BIN)/pytest -q -n 0 tests/end_to_end/test_terminal.py

screenshots: servers $(DEV) console  ## Take pictures of the console's screens into docs/images
	$(BIN)/python -m tests.support.screenshots

release: $(RELEASE) console  ## Build a release in dist/ from what is committed, and try it elsewhere
	@PIP_ARGS="$(PIP_ARGS)" CPU_PIP_ARGS="$(CPU_PIP_ARGS)" deploy/release.sh

# Compose reads deploy/.env for all else that it is told.
images:  ## Build the images of deploy/compose.yaml, tagged with the version; needs Docker
	IMAGE_TAG=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) docker compose -f deploy/compose.yaml build

LOCKED := deploy/requirements
COMPILE = $(BIN)/uv pip compile --quiet --custom-compile-command "make lock" --no-annotate --strip-extras \
  --generate-hashes --only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --constraints constraints.txt $(LOCK_ARGS)

# A plain `make lock` leaves the -cpu files alone: only some indexes have torch's CPU builds.
lock: $(UV)  ## Pin what the images install, with hashes, in deploy/requirements
	@set -eu; for name in gateway fetcher notifier trainer inferencer; do \
	  $(COMPILE) --extra $$name pyproject.toml --output-file $(LOCKED)/$$name.txt; done
	@set -eu; for name in trainer inferencer; do \
	  $(COMPILE) --constraints constraints-cuda.txt --extra $$name --extra cuda pyproject.toml --output-file $(LOCKED)/$$name-cuda.txt; done
	@set -eu; if [ -n '$(CPU_LOCK_ARGS)' ]; then for name in trainer inferencer; do \
	  $(COMPILE) $(CPU_LOCK_ARGS) --extra $$name pyproject.toml --output-file $(LOCKED)/$$name-cpu.txt; done; fi
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(COMPILE) - --output-file $(LOCKED)/build.txt

format: $(DEV)  ## Put the code in shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# First, because it either is quick or stops everything.
servers:
	@deploy/install-test-servers.sh

clean:  ## Remove what was made here, .venv included
	rm -rf $(VENV) demo-output card-report dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo >&2 "$(PYTHON) is missing or is not Python 3.11. Name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CONSOLE_PARTS): $(CONSOLE)/package-lock.json
	@command -v npm >/dev/null || { echo >&2 "npm is missing: install Node.js 20 or newer."; exit 1; }
	npm --prefix $(CONSOLE) ci --no-audit --no-fund --loglevel=error
	@touch $@

$(CONSOLE)/src/api/schema.ts: docs/openapi.json docs/parameters.md $(CONSOLE)/parameters.mjs $(CONSOLE_PARTS)
	npm --prefix $(CONSOLE) run --silent types

$(CONSOLE_PAGE): $(CONSOLE)/src/api/schema.ts $(shell find $(CONSOLE)/src $(CONSOLE)/index.html $(CONSOLE)/*.ts $(CONSOLE)/tsconfig.json -type f ! -name schema.ts ! -name parameters.json)
	npm --prefix $(CONSOLE) run --silent check
	npm --prefix $(CONSOLE) run --silent build

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Setting up $(VENV), once: a few minutes. (PIP_ARGS=-v shows the work.)"
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[all]'
	@touch $@

$(FUZZ): $(DEV)
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[fuzz]'
	@touch $@

$(BENCH): $(DEV)
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	@touch $@

$(RELEASE): $(DEV)
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[release]'
	@touch $@

$(UV): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt uv
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Setting up $(VENV) with the tools of development, once: a few minutes. (PIP_ARGS=-v shows the work.)"
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[all,dev]'
	@touch $(RUNTIME) $@

$(CARD): pyproject.toml constraints.txt constraints-cuda.txt
	@echo "Setting up $(VENV)/card, once: several GB, some minutes."
	$(PYTHON) -m venv $(VENV)/card
	$(VENV)/card/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS) \
	  -c constraints.txt -c constraints-cuda.txt -e '.[all,cuda,dev]'
	@touch $@

$(CLIENTS): $(CLIENT_PINS) | $(BIN)/pip
	@echo "Setting up the clients that the tests drive, once: a minute."
	$(PYTHON) -m venv $(VENV)/clients/python
	$(VENV)/clients/python/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS) \
	  -c tests/clients/python/constraints.txt -r tests/clients/python/requirements.txt
	mkdir -p $(VENV)/clients/node
	cp tests/clients/node/package.json tests/clients/node/package-lock.json $(VENV)/clients/node
	npm --prefix $(VENV)/clients/node ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
