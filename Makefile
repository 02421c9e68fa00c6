# Python 3.11 with pip is all that these need. Each target makes its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo pictures test nightly chaos endurance soak check docs matrix sdks bench clean

demo: $(VENV)/.demo
	@$(BIN)/python -m durable.demo

# Four at once on two cores, since tests also wait; what takes long is begun first (tests/conftest.py). Each skipped test is named with
# its reason.
WORKERS ?= 4
# What was compiled is kept, whatever the shell says: else each of hundreds of child processes compiles the library anew.
test nightly: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -rs

# A million seeds of the simulation (make nightly SEEDS=100000 for a tenth of it), a blow at every place (tests/harness/blows.py), an hour of
# chaos beside an hour in which nothing may grow, and every planted bug; what was counted is added to docs/reliability.json, and the page is made of it.
SEEDS ?= 1000000
MINUTES ?= 60
nightly: $(VENV)/.test
	@cd tests && ../$(BIN)/python -m simulation --seeds $(SEEDS) --nightly $(FIGURES)
	@DURABLE_DIFFERENTIAL=5000 DURABLE_SEQUENCES=1000 DURABLE_KILLS=250 DURABLE_EXAMPLES=3000 $(BIN)/python -m pytest -q --timeout 7200 \
		tests/faults/test_differential.py tests/stores/test_same_stores.py tests/faults/test_kill.py tests/values/test_fingerprints.py tests/values/test_values_properties.py
	@DURABLE_LIVES=300 $(BIN)/python -m pytest -q tests/runtime/test_races.py -k decides_again
	@DURABLE_BLOWS=1 $(BIN)/python -m pytest -q -n 2 -rP --timeout 7200 tests/faults/test_blows_*.py
	@$(MAKE) --no-print-directory -j 2 chaos endurance
	@cd tests && ../$(BIN)/python -m chaos plants $(FIGURES)
	@cd tests && ../$(BIN)/python -m chaos page

# Each by itself: what breaks, and what must not grow.
FIGURES ?= --figures ../docs/reliability.json
chaos: $(VENV)/.test
	@cd tests && ../$(BIN)/python -m chaos play --minutes $(MINUTES) $(FIGURES)

endurance: $(VENV)/.test
	@cd tests && ../$(BIN)/python -m chaos endure --minutes $(MINUTES) $(FIGURES)

# The same for HOURS hours; nothing is added to the figures.
HOURS ?= 8
soak: $(VENV)/.test
	@$(MAKE) --no-print-directory -j 2 chaos endurance MINUTES=$$((60 * $(HOURS))) FIGURES=

# Spelling by a dictionary, in prose and code alike (pyproject.toml says which); tests misspell on purpose.
PROSE = *.md docs examples src benchmarks requirements Makefile pyproject.toml hatch_build.py .ci
check: $(VENV)/.check docs
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports --no-logo 2>&1 | tail -n 12
	@$(BIN)/codespell $(PROSE)

# The pages, into docs/_build/html. A warning is an error, and so is a public name that is not on the API page.
docs: $(VENV)/.docs
	@$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html

# The store's tests on every PostgreSQL whose binaries can be had (npm, and the system's): about a quarter of an hour.
matrix: $(VENV)/.test
	@$(BIN)/python tests/harness/matrix.py

# What the most used SDKs return and raise, given to a step; writes a table of docs/values.md.
sdks: $(VENV)/sdks/.installed
	@$(VENV)/sdks/bin/python tests/harness/sdks.py

# The pictures of the page in the docs. Wants Chromium (apt-get install chromium).
pictures: $(VENV)/.test
	@cd tests && ../$(BIN)/python -m harness.pictures

# Each contestant takes turns with the limits: some six minutes. Writes docs/performance.md and its charts.
bench: $(VENV)/.bench
	@$(BIN)/python benchmarks/run.py --page

clean:
	rm -rf $(VENV) docs/_build .durable* .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "durable needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)

# What each target needs; installed anew when pyproject.toml changes.
PIP = -m pip install --quiet --disable-pip-version-check --no-warn-script-location
INSTALL = $(BIN)/python $(PIP)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) …"
	@$(INSTALL) -e '.[embedded,cli,web]'
	@touch $@

$(VENV)/.test: pyproject.toml requirements/test.txt $(VENV)/.demo
	@$(INSTALL) -r requirements/test.txt
	@touch $@

# What the benchmark is measured beside; without it those rows are left out.
$(VENV)/.bench: requirements/peers.txt $(VENV)/.test
	@$(INSTALL) -r requirements/peers.txt
	@touch $@

# Apart: what the SDKs depend on may be older than what all else is checked with.
$(VENV)/sdks/.installed: pyproject.toml requirements/sdks.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv $(VENV)/sdks
	@$(VENV)/sdks/bin/python $(PIP) -e . -r requirements/sdks.txt
	@touch $@

$(VENV)/.check: pyproject.toml $(VENV)/.test
	@$(INSTALL) -r requirements/check.txt
	@touch $@

$(VENV)/.docs: pyproject.toml requirements/docs.txt $(VENV)/.demo
	@$(INSTALL) -r requirements/docs.txt
	@touch $@
