# `make demo` trains, evaluates and reports on the bundled digits; `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Not byte-compiled: Python compiles what it imports, once, and much of torch is never imported.
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-processes test-slow lint docs format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	$(BIN)/soflow train digits --out runs/digits
	$(BIN)/soflow evaluate runs/digits
	$(BIN)/soflow report runs/digits
	@echo
	@echo "Look at  runs/digits/report.html  in a browser: digits drawn in a single forward pass, and how good they are."

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-processes: $(VENV)/.dev
	$(BIN)/python -m pytest -m processes --numprocesses 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/actionlint
	$(BIN)/python tools/check_words.py

# A warning fails it, but not with --quiet. The variable turns off an advertisement.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("soflow needs Python 3.10 or later, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing soflow into $(VENV) (about a minute) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing soflow and its test tools into $(VENV) (about a minute) ..."
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) runs site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
