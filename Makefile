# `make demo` and `make test` need nothing but Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMPS := .make
# An older release whose quantizers are other classes; the tests look for it here.
OLD_FAMILY := vector-quantize-pytorch-1.14.24

.PHONY: demo test lint types unit servers reference audit fuzz soak clean

demo: $(STAMPS)/demo
	$(BIN)/vqwatch demo

test: $(STAMPS)/dev servers lint types unit

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev
	$(BIN)/mypy

# Two files of tests at a time; then, one by one, the tests that measure time.
unit: $(STAMPS)/dev
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m alone

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

# Are there published holes in what is pinned? Asks PyPI, or `make audit ADVISORIES=DIR`: a checkout of PyPA's database.
audit: $(STAMPS)/dev
	$(BIN)/python -m tests.audit.run $(if $(ADVISORIES),--advisories $(ADVISORIES))

# Coverage-guided fuzzing of everything that reads what others wrote: ten million inputs on the wire, then minutes of each.
fuzz: $(STAMPS)/dev
	$(PIP) install --constraint constraints.txt atheris
	$(BIN)/python -m tests.fuzz.run wire -runs=10000000
	$(BIN)/python -m tests.fuzz.run rules -max_total_time=300
	$(BIN)/python -m tests.fuzz.run http -max_total_time=300

# Four ranks train while their daemon is killed a hundred times; then eight send the standard load for an hour.
soak: $(STAMPS)/dev
	$(BIN)/python -m tests.end_to_end.chaos --kills 100 --ranks 4
	$(BIN)/python -m tests.end_to_end.soak --minutes 60 --ranks 8

clean:
	rm -rf $(VENV) $(STAMPS) .mypy_cache .ruff_cache .pytest_cache .hypothesis
