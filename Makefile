# `make demo` and `make test` each do all of their own set-up: a virtual environment in .venv, the tested versions of
# constraints.txt, then the work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that share the tests, and threads of each: the models are tiny, and a second thread gains them little.
WORKERS ?= 2

.PHONY: demo test lint format docs doctest clean

demo: $(VENV)/.installed-base
	$(BIN)/dit-lens localize

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html $(SPHINXOPTS) docs docs/_build/html

# The snippets of the pages, each page in an interpreter of its own; `make test` runs them too. The gallery is run by
# `make docs`, which SPHINXOPTS="-D plot_gallery=0" leaves out.
doctest: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) tests/test_docs.py

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: what is installed is not installed again until the versions change.
$(VENV)/.installed-base: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf docs/_build docs/auto_examples docs/sg_execution_times.rst build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
