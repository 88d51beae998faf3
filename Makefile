# Everything runs inside .venv; pyproject.toml and constraints.txt say what is in it.
PYTHON ?= python3
ARGS ?=
CACHE ?= data_cache
CELL_TIMEOUT ?= 180

BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

# Idle threads that spin make a shared machine several times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: help lab test unit slow notebooks student slides lint data-check results clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

lab: .venv/lab ## open the lab (ARGS=--no-browser prints the address only)
	$(BIN)/jupyter lab $(AS_ROOT) --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(ARGS)

test: unit slow notebooks ## unit tests, slow tests, then every notebook in the ci profile

unit: .venv/test ## the quick tests
	MINIBEIT3_PROFILE=ci $(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS)

slow: .venv/test ## tests of several processes, of the browser, and of much drawn data
	MINIBEIT3_PROFILE=ci $(BIN)/python -m pytest -m slow $(ARGS)

notebooks: .venv/test ## every notebook in the ci profile, two at a time
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks to run"
else
	MINIBEIT3_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_TIMEOUT) \
		--nbval-sanitize-with=tests/nbval_sanitize.cfg $(NOTEBOOKS)
endif

student: .venv/lab ## notebooks without answers, into notebooks/student
	$(BIN)/python tools/build_student.py

slides: .venv/lab ## slides from tagged cells, into notebooks/slides
	$(BIN)/python tools/build_slides.py

lint: .venv/dev ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

data-check: .venv/data ## rebuild data_samples from CACHE=folder and compare
	$(BIN)/python tools/build_data_samples.py --cache "$(CACHE)" --check

results: .venv/test ## run again the command that each results/*.json names
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -c "import json, pathlib, subprocess; \
	files = sorted(pathlib.Path('results').glob('*.json')); \
	commands = dict.fromkeys(json.loads(file.read_text())['command'] for file in files); \
	[subprocess.run(command, shell=True, check=True) for command in commands]"

clean: ## remove .venv and caches
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/lab: pyproject.toml constraints.txt
	@echo "Installing the lab into .venv (the first time takes minutes) ..."
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $@

.venv/%: .venv/lab
	$(INSTALL) ".[$(EXTRAS)]"
	@touch $@

.venv/test: EXTRAS = test,teacher
.venv/dev: EXTRAS = dev,test,data
.venv/data: EXTRAS = data
