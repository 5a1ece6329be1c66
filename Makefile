# Everything happens in .venv. PYTHON is what it is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow test-vllm stress lab lab-quick lint bench clean

quickstart: .venv/installed
	$(BIN)/papo-hub quickstart

# In two processes, file by file; TEST="-n 0 tests/unit" for one process and a part.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST)

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# With a real vLLM, which has an environment of its own; without a GPU it is vLLM's CPU build.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest -n 0 -m vllm tests/real_vllm $(TEST)

.venv-vllm/installed: setup.cfg constraints.txt tests/real_vllm/make_environment.sh
	PYTHON=$(PYTHON) bash tests/real_vllm/make_environment.sh .venv-vllm
	touch $@

# Runs killed at random moments, fifty times, and resumed; STRESS="--kills 200 --seed 1".
stress: .venv/installed
	$(BIN)/python -m tests.stress $(STRESS)

# The runs, tables and figures of lab/README.md, resumable; LAB="hacking --jobs 4" for one question, LAB=--draw for no runs.
lab: .venv/installed
	$(BIN)/python -m lab $(LAB)

lab-quick: .venv/installed
	$(BIN)/python -m lab --quick $(LAB)

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Against TRL 1.5.0, which has an environment of its own; BENCH="--quick" or "--repeats 3".
bench: .venv/installed benchmarks/.venv/installed
	$(BIN)/python -m benchmarks.run $(BENCH)

# TRL imports requests without asking for it.
benchmarks/.venv/installed: constraints.txt
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --constraint constraints.txt trl==1.5.0 requests pillow
	touch $@

clean:
	rm -rf .venv .venv-vllm benchmarks/.venv runs build *.egg-info
