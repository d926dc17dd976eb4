# Needs Python 3.11 or newer with venv, and nothing else. PYTHON=... chooses another one.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/python -m experiments.demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest tests/x64

# PyTorch only here; on Linux without a GPU a CPU build of it is enough.
bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench,plots]'
	$(BIN)/python -m benchmarks

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plots,test,lint]'
	touch $@

clean:
	rm -rf .venv
