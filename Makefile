# The whole development cycle. `make demo` and `make test` each work alone from a fresh clone.
#
#   PYTHON   the interpreter that creates .venv (3.11 or newer)
#   TORCH    what is handed to pip first, before anything that needs torch. The default is the CPU build;
#            for another build give pip's own words, as in make env TORCH="torch --index-url URL"
#   WORK     where `make bench` keeps fine-tuned models between calls

PYTHON ?= python3
TORCH  ?= torch==2.13.0
WORK   ?= build/models

BIN   := .venv/bin
READY := .venv/.ready

.PHONY: env demo test lint format bench clean

env: $(READY)

# torch goes first: pip then keeps that build when it resolves the other packages.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/lowbit demo

# One process per core with one thread each beats one process with all of them: the tests' tensors are small.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/tables.py --check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python benchmarks/tables.py

bench: $(READY)
	$(BIN)/python -m pip install -e ".[bench]"
	$(BIN)/python benchmarks/size.py
	$(BIN)/python benchmarks/stage1_cost.py
	$(BIN)/python benchmarks/untuned.py --split train --peers
	$(BIN)/python benchmarks/untuned.py --split dev
	$(BIN)/python benchmarks/strategies.py
	$(BIN)/lowbit bench speed --json benchmarks/results/speed.jsonl
	$(BIN)/python benchmarks/runtime_study.py --work $(WORK)/runtime
	$(BIN)/python benchmarks/tuning_cost.py
	$(BIN)/python benchmarks/zeroshot_cost.py
	$(BIN)/python benchmarks/tuning_quality.py --work $(WORK)
	$(BIN)/python benchmarks/tuning_quality.py --work $(WORK) --kind final --tasks qnli qqp mnli
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
