PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

IN_PARALLEL := -n logical --maxprocesses 8 --dist worksteal  # a process per core, each of up to 1 GB

.PHONY: demo test test-all lint clean

demo: $(READY)  ## separate a bundled mixture, print the result and draw a picture
	$(BIN)/python demo/run.py

test: $(READY)  ## the default tests: no GPU, no network
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-all: $(READY)  ## the slow tests too
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not gpu and not network"

lint: $(READY)  ## formatting, style, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist
