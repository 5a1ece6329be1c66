# Everything happens in .venv. PYTHON is what it is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow lint clean

quickstart: .venv/installed
	$(BIN)/papo-hub quickstart

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
