# Everything a person or CI runs. `make` alone lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run side by side, each on one thread, and a file's tests by one worker, which shares what they set up.
WORKERS ?= 2
# Nothing here needs the network once it is installed.
OFFLINE := HF_HUB_OFFLINE=1 WANDB_MODE=offline HF_HUB_DISABLE_TELEMETRY=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check format-check format lint types layers faults gpu bench learn clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

install: $(STAMP)  ## create .venv and install prefopt with its tools, pinned by constraints.txt

# torch comes first and alone: resolved together with the rest, a newer build with gigabytes of CUDA could be chosen.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(STAMP)  ## the whole chain on the embedded world, offline, on a CPU
	$(OFFLINE) $(BIN)/prefopt run recipes/quickstart.yaml

test: $(STAMP)  ## all tests
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: format-check lint types layers test  ## format, lint, types, import layers, tests

format: $(STAMP)  ## reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

faults: $(STAMP)  ## every kill point, damaged file and fuzz case: minutes; writes the counts of docs/reliability.md
	rm -f docs/.faults.jsonl
	$(OFFLINE) OMP_NUM_THREADS=1 PREFOPT_FAULTS_COUNTS=$(CURDIR)/docs/.faults.jsonl \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "sweep or not sweep" tests/faults
	$(BIN)/python tests/faults/fill_docs.py docs/.faults.jsonl
	rm docs/.faults.jsonl

gpu: $(STAMP)  ## the chain on a CUDA device: bf16, QLoRA, activation checkpointing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bitsandbytes]'
	$(BIN)/python tests/gpu/chain.py

bench: $(STAMP)  ## speed and memory of training against TRL, on a CPU: hours; writes docs/benchmarks.md
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/ppo.py

learn: $(STAMP)  ## reward against KL of ppo, rloo, grpo and dpo, on a CPU: hours; writes docs/benchmarks.md
	$(BIN)/python -m tests.learning.frontier

clean:  ## remove what was installed and cached, not your runs
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
