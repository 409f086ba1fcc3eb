# Every target sets up what it needs: a virtual environment in .venv, the package, its tests' extras.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
STAGE ?= vae

.PHONY: demo studio test test-long browser mutants lint types docs toy-checkpoint clean

$(VENV)/runtime: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/dev: $(VENV)/runtime
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

$(VENV)/docs: $(VENV)/runtime
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@

demo: $(VENV)/runtime  ## two entities along drawn paths, from the shipped toy checkpoint
	$(RUN) scripts/demo.py

studio: $(VENV)/runtime  ## draw paths in the browser, watch what becomes of them
	$(BIN)/pip install --quiet -e ".[studio]"
	$(RUN) scripts/studio.py

test: $(VENV)/dev  ## FAST=1: of what changed since main, and one parity test per room
	$(BIN)/ruff check .
	$(RUN) -m pytest -n 2 --dist loadfile -m "not long and not browser" $(if $(FAST),$$($(RUN) scripts/touched_tests.py))

test-long: $(VENV)/dev
	$(RUN) -m pytest -n 2 --dist loadfile -m long

browser: $(VENV)/dev  ## the studio in headless Chromium (Debian: apt install chromium-driver)
	$(RUN) -m pytest -m browser

mutants: $(VENV)/dev  ## known faults, one at a time: do the tests notice? COUNT=15 FIRST=30 for some
	$(RUN) scripts/mutants.py $(if $(COUNT),--count $(COUNT)) $(if $(FIRST),--first $(FIRST))

lint: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/dev  ## no room may have more type errors than tests/type_errors.json says
	$(RUN) scripts/check_types.py

docs: $(VENV)/docs  ## the documentation as a site: open site/index.html; `mkdocs serve` has the search
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

toy-checkpoint: $(VENV)/runtime  ## the whole chain, or its tail: STAGE=joint
	$(RUN) scripts/toy_checkpoint.py --from-stage $(STAGE)

clean:
	rm -rf $(VENV) build out site *.egg-info
