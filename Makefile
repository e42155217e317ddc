# Everything the project does from a fresh clone. `make setup` is idempotent and quick when there
# is nothing to do; what it needs and which variables it reads: launch/setup/install.sh.

VENV := $(or $(HEXGEN_VENV),.venv)
BIN := $(VENV)/bin
# One thread a process: servers and tests share few cores, and OpenMP threads that spin for work
# take them from each other. Byte code is kept: servers start from it.
RUN := env -u PYTHONDONTWRITEBYTECODE -u PYTHONPATH OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lock clean docs

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: ## make .venv with what this machine can use (8 GB of disk; seconds when it is there)
	@launch/setup/install.sh

demo: setup ## two workers on the CPU, a coordinator, 12 questions; report in runs/demo
	$(RUN) $(BIN)/hexgen-sglang demo $(ARGS)

test: setup ## run all tests, with real SGLang servers (ARGS: passed on to pytest)
	$(RUN) $(BIN)/python -m pytest $(ARGS)

check: setup ## lint, format, types and layers
	$(RUN) $(BIN)/ruff check .
	$(RUN) $(BIN)/ruff format --check .
	$(RUN) $(BIN)/mypy
	$(RUN) $(BIN)/lint-imports

docs: setup ## build the documentation site in runs/site
	$(RUN) $(BIN)/mkdocs build --strict --quiet

lock: setup ## regenerate launch/setup/requirements-cpu.txt from the pinned SGLang and setup.py
	$(RUN) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python launch/setup/lock.py

clean: ## remove what was made here, except .venv and the models in the user's cache
	rm -rf runs build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache \
	    .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
