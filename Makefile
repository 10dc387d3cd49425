# Everything a newcomer runs: make demo, make test, make check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_SCALE ?= full

.PHONY: help setup demo test check format clean

help:
	@echo "make demo    train and compare three tiny models (about five minutes on two CPU cores)"
	@echo "make test    run the whole test suite"
	@echo "make check   formatter, linter, type checker"
	@echo "make format  format the code"

$(BIN)/unmask: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(BIN)/unmask

demo: setup
	$(BIN)/python examples/demo.py --scale $(DEMO_SCALE)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
