# make demo   environment, requirements, then a stitch of two shipped networks on the embedded digits
# make test   the tests; those that need real data sets are skipped where these are absent. DEVICE=cuda runs the
#             numerical ones on a GPU, too
# make test-engines  studies on submitit and ray, which it installs, and their page in chromium, if that is there
# make fuzz N=100000  spoils so many files of every kind and reads them (SEED=1 chooses others): anything but "read" or
#             one line is a failure
# make bench  times the suite against the plain way, an hour or more on a quiet machine
# make findings  docs/findings.md anew: two and a half hours on two cores, gone on from where it was; needs CIFAR-10
# make docs   the tables of README and docs from the parsers, and the pages as a site that opens from site/index.html
# make check  what continuous integration runs: formatting, types, layers, shell scripts, tests
#
# VENV=path reuses an environment, PYTHON=python3.12 chooses the interpreter of a new one.

VENV ?= .venv
PYTHON ?= python3
DEVICE ?= cpu
# tests run side by side, a process a core, which need no threads of their own
WORKERS ?= auto
N ?= 20000
SEED ?= 1
BIN := $(VENV)/bin
DEMO := model_weights/Tiny10/Digits/in0-gn0/440.pt model_weights/Tiny10/Digits/in1-gn1/440.pt bn3 bn3

.PHONY: demo test test-engines fuzz bench findings docs check lint format

demo: $(VENV)/.demo-ready
	$(BIN)/python stitch_nets.py $(DEMO) -d digits -i ps_inv --plot --run-name demo --overwrite

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not (submitit or ray or browser)"
	test $(DEVICE) = cpu || $(BIN)/python -m pytest tests/devices/test_numbers_on_device.py --device $(DEVICE)

test-engines: $(VENV)/.dev-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check submitit ray
	$(BIN)/python -m pytest -m "submitit or ray or browser"

fuzz: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(N) $(SEED)

bench: $(VENV)/.demo-ready
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.moments
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.many
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.dense

findings: $(VENV)/.docs-ready
	$(BIN)/python -m benchmarks.findings

docs: $(VENV)/.docs-ready
	$(BIN)/python -m docs.tables
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: lint test

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck --external-sources --source-path=container .ci/run container/*.sh

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.demo-ready: requirements.txt requirements-plots.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-plots.txt
	touch $@

$(VENV)/.dev-ready: requirements.txt requirements-plots.txt requirements-nets.txt requirements-studies.txt requirements-docs.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.docs-ready: requirements-docs.txt $(VENV)/.demo-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt -r requirements-studies.txt
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
