# Two commands on a fresh machine: make demo, make test. Each creates .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs playground check format test test-slow lint wheel clean

demo: $(VENV)/.demo
	$(BIN)/codekiln demo --out runs/demo

# Lint, types, and the tests that start no other process: about 75 seconds.
check: lint
	$(BIN)/python -m pytest -m "not slow and not process"

# All tests but the slow ones, in two processes; T=tests/test_loader.py runs one file.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(if $(T),$(T),-n 2 --dist worksteal)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --timeout 1800

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Bundles the page that `codekiln serve` shows. Only a change of its sources needs it, and Node.js.
playground:
	cd codekiln/serve/playground/src && npm ci --no-audit --no-fund && npm run build

# The documentation as pages in site/, which need no network and no server: open site/index.html.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The package as a file in dist/, from which it is installed without this folder.
wheel: $(VENV)/.dev
	$(BIN)/python -m hatchling build --target wheel --directory dist

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not found: install Python 3.11 or newer, or name it: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V): Python 3.11 or newer is needed, name it: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs dist site .mypy_cache .ruff_cache .pytest_cache
