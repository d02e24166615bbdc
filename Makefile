# The course in three commands: `make book`, `make test`, `make lab`. Each sets up .venv first if it is missing.
# Another Python: make book PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv/bin/python

# Kernels are those of .venv, whatever else is registered on this machine.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help setup book test lab results benchmarks outputs lint format clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1	/'

setup: ## make .venv and install everything, once
	@$(PYTHON) tools/setup.py

book: setup ## build the book and print where it is
	@$(VENV) tools/book.py

# One thread for each worker, so that the workers do not get into each other's way; a notebook or file stays on one worker.
test: setup ## run every test: units, labs, the strict book build, the pages in a browser
	@OMP_NUM_THREADS=1 $(VENV) -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope

lab: setup ## open JupyterLab on the labs
	@$(VENV) -m jupyterlab labs $(if $(filter 0,$(shell id -u)),--allow-root)

# The stored results of all sweeps are in results/sweeps; each file there says what it costs to make them anew.
results: setup ## run a small sweep from scratch, and compare it with the stored one
	@mkdir -p _build && rm -f _build/results.sqlite*
	@$(VENV) -m prunelab sweep results/sweeps/small.toml --out _build/results.sqlite
	@$(VENV) -m prunelab sweep results/sweeps/small.toml --out _build/results.sqlite --compare results/sweeps/small.json

# Optional peers: `pip install torch-pruning fasterai`. Half an hour on two idle cores, with CIFAR-10.
benchmarks: setup ## measure this package beside others, and write the table of the README
	@for name in surgery peers data_loading evidence; do $(VENV) benchmarks/$$name.py || exit 1; done
	@$(VENV) tools/summary.py

# On CIFAR-10, which PRUNELAB_DATA names or `prunelab data --download` has fetched; minutes for each lab.
outputs: setup ## run the labs whose stored outputs are older than the code, and store new ones
	@$(VENV) tools/store_labs.py labs/*.ipynb

lint: setup ## check format, style and types
	@$(VENV) -m ruff format --check . && $(VENV) -m ruff check . && $(VENV) -m mypy

format: setup ## format the code
	@$(VENV) -m ruff format . && $(VENV) -m ruff check --fix .

clean: ## delete what was built (.venv and vendor_root stay)
	@rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
