# Needs Python 3.11 or newer with venv, and nothing else. PYTHON=... chooses another one,
# TESTS=... only some of the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check

# Nearly all of the time of the tests is compiling: they do without LLVM's optimisation and
# without XLA's newer emitters, which take three times as long. Those that compute more than
# they compile (parity with the authors' masks) are compiled as users' programs are; tests in
# double precision also need a process of their own.
define run_tests
XLA_FLAGS="$(FAST)" $(1)/bin/python -m pytest -n 2 --dist loadfile $(or $(TESTS),--ignore tests/test_parity.py)
$(if $(TESTS),,$(1)/bin/python -m pytest -n 2 --dist loadgroup tests/test_parity.py)
$(if $(TESTS),,JAX_ENABLE_X64=1 $(1)/bin/python -m pytest -n 2 --dist loadgroup tests/x64)
endef
FAST = $$(.ci/fast_flags $(1)/bin/python)

# A PYTHON that was given, or else the newest one found between two versions.
find_python = $(if $(filter file,$(origin PYTHON)),$$(.ci/find_python $(1)),$(PYTHON))

.PHONY: demo test test-newest test-lowest check-long soak lint bench tpu-check models clean

demo: .venv/installed
	$(BIN)/python -m experiments demo

test: .venv/installed
	$(call run_tests,.venv)

test-newest: FAST =
test-newest: .venv-newest/installed
	$(call run_tests,.venv-newest)

test-lowest: .venv-lowest/installed
	$(call run_tests,.venv-lowest)

check-long: .venv/installed
	$(BIN)/python -m pytest -m long -n 2 --dist loadfile
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest -m long -n 2 tests/x64

# A quarter to half an hour: kills, damage, a full disk.
soak: .venv/installed
	$(BIN)/python -m tests.soak

# PyTorch only here; on Linux without a GPU a CPU build of it is enough.
bench: .venv/installed
	$(BIN)/python $(PIP) -e '.[bench,plots]'
	$(BIN)/python -m benchmarks

# Compiles pruning for TPUs that are not there, on any x86-64 Linux machine, and lowers it for
# CUDA. libtpu serves one process at a time.
tpu-check: .venv-tpu/installed
	.venv-tpu/bin/python -m experiments.tpu.compiled

# About an hour, and the package index: models of other libraries, in environments of their own.
models: .venv/installed
	$(BIN)/python -m benchmarks.models

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -r requirements.txt -e '.[plots,test,lint]'
	touch $@

.venv-tpu/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-tpu
	.venv-tpu/bin/python $(PIP) -e '.[tpu,experiments]'
	touch $@

.venv-newest/installed: python = $(call find_python,3.12 3.14)
.venv-lowest/installed: python = $(call find_python,3.11 3.11)
.venv-%/installed: constraints/%.txt requirements.txt pyproject.toml
	python=$(python) && $$python -m venv --clear .venv-$*
	.venv-$*/bin/python $(PIP) -c constraints/$*.txt -r requirements.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-lowest .venv-tpu .venv-models
