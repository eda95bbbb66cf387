# Two commands on a fresh machine (Python >= 3.11, make, git): `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export DAGSTER_HOME := $(CURDIR)
export GX_ANALYTICS_ENABLED := false
export OPENBLAS_NUM_THREADS ?= 1
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-slow eng5-suite mock-profile check format ui lock clean help

help: ## What each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) ## From essays to grades, end to end, with no key and no server
	@$(BIN)/cj demo

# one more than there are cores, since some tests wait
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

test: $(STAMP) ## The default test suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(STAMP) ## What takes longer: crash drills, a live daemon, a browser
	@$(BIN)/python -m pytest -m slow

SUITES := regular small-net
PROFILES := cj-generic eng5-anchor eng5-lower5

eng5-suite: $(STAMP) ## Whole ENG5 batches; SUITE=regular or SUITE=small-net for one of them
	@$(if $(filter-out $(SUITES),$(SUITE)),echo "SUITE is one of: $(SUITES)"; exit 2)
	@$(BIN)/python -m pytest -m "$(if $(SUITE),eng5_$(subst -,_,$(SUITE)),eng5_regular or eng5_small_net)"

mock-profile: $(STAMP) ## A simulated judge against its own law: PROFILE=cj-generic, eng5-anchor or eng5-lower5
	@$(if $(filter $(PROFILES),$(PROFILE)),,echo "PROFILE is one of: $(PROFILES)"; exit 2)
	@$(BIN)/python -m pytest -m mock_profile -k "$(PROFILE)"

check: $(STAMP) ## ruff, ruff format, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

ui: $(STAMP) ## Webserver and daemon on loopback (http://127.0.0.1:3000)
	@$(BIN)/cj ui

lock: ## Compile requirements.lock from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml --extra dev --python-version 3.11 --universal --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-strip-extras --no-header -q -o requirements.lock

clean: ## Remove the virtual environment
	@rm -rf $(VENV)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ...")'
	@echo "Installing what is locked into $(VENV) ..."
ifneq ($(UV),)
	@uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
else
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $(STAMP)
