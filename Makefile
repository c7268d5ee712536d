# `make demo` and `make test` need nothing but Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMPS := .make
# An older release whose quantizers are other classes; the tests look for it here.
OLD_FAMILY := vector-quantize-pytorch-1.14.24

.PHONY: demo test lint types unit servers reference benchmarks fuzz soak clean

demo: $(STAMPS)/demo
	$(BIN)/vqwatch demo

test: $(STAMPS)/dev servers lint types unit

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev
	$(BIN)/mypy

unit: $(STAMPS)/dev
	$(BIN)/python -m pytest

# The real servers that the end-to-end tests talk to; installed where that is possible without asking anybody.
servers:
	./tests/install_servers.sh

# Pages that are made from the code; a test fails when they are out of date.
reference: $(STAMPS)/dev
	$(BIN)/python -m vqwatch_daemon.reference > METRICS.md
	$(BIN)/python deploy/grafana/generate.py
	$(BIN)/python deploy/kubernetes/generate.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[all]"
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: pyproject.toml constraints.txt tests/families.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[all,dev]"
	$(PIP) install --constraint constraints.txt --no-deps --requirement tests/families.txt
	$(PIP) install --no-deps --upgrade --target $(VENV)/families/$(OLD_FAMILY) vector-quantize-pytorch==1.14.24
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/demo

clean:
	rm -rf $(VENV) $(STAMPS) .mypy_cache .ruff_cache .pytest_cache .hypothesis
