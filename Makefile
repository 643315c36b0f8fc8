PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo-ready
DOCS_READY := $(VENV)/.docs-ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

IN_PARALLEL := -n logical --maxprocesses 8 --dist worksteal  # a process per core, each of up to 1 GB

CORE ?= 1
CORES ?= 1
RECIPE := recipes/campaign-fine.yaml
CAMPAIGN := -m flasepformer train $(RECIPE) --out runs/campaign --cache runs/speech-cache --resume
PIN := $(if $(shell command -v taskset),taskset -c $(CORE))

.PHONY: demo test test-slow test-all lint wheel-check docs page campaign campaign-pack clean

demo: $(DEMO_READY)  ## separate a bundled mixture, print the result and draw a picture
	$(BIN)/python demo/run.py

test: $(READY)  ## the default tests: no GPU, no network
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-slow: $(READY)  ## those that take more than half a second
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "slow and not long and not gpu and not network"

test-all: $(READY)  ## all tests, the long ones too
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not gpu and not network"

lint: $(READY)  ## formatting, style, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel-check: $(READY)  ## wheel and sdist, on the lowest and the newest versions of what they depend on
	.ci/wheel-check

campaign: $(READY)  ## train on from the committed state, on core CORE, or CORES=2 in as many processes
	$(BIN)/flasepformer unpack docs/campaign runs/campaign --recipe $(RECIPE)
ifeq ($(CORES),1)
	OMP_NUM_THREADS=1 $(PIN) $(BIN)/python $(CAMPAIGN)
else
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node $(CORES) $(CAMPAIGN)
endif

campaign-pack: $(READY)  ## put the state of that run into docs/campaign, to be committed
	$(BIN)/flasepformer pack runs/campaign docs/campaign

docs: $(DOCS_READY)  ## the reference of the Python interface, as pages in build/site
	$(BIN)/mkdocs build --quiet

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO_READY): pyproject.toml constraints.txt | $(BIN)/python  ## what separating and drawing needs, no more
	$(PIP) -e ".[plot]"
	touch $@

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $(READY) $(DEMO_READY)

$(DOCS_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[docs]"
	touch $@

page:  ## build the page in the browser anew, from web/; needs npm
	cd web && npm ci --ignore-scripts && npm run check && npm run build

clean:
	rm -rf $(VENV) build dist
