# make demo   set up, train a small superresolution model with LPIPS as loss and metric, show a table and an image
# make test   set up, run the tests
# make test-lowest   the same tests with the lowest versions of all dependencies, and the wheel in place of the checkout
# make bench  set up, measure speed and memory against the peers: an hour; make bench BENCH=--quick: some minutes
# make tutorial   set up, run recipes/tutorial.ipynb and store its outputs
# make docs   set up, build the API pages in build/docs; warnings and dead links are errors
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-lowest bench tutorial docs lint clean

demo: $(VENV)/recipes.stamp
	$(BIN)/lpips-lightning demo

# Bytecode is kept, whatever the environment says: else each process that a test starts compiles the package anew.
test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --durations=10

test-all: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto -m "" --durations=20

test-lowest: .venv-lowest/lowest.stamp
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv-lowest/bin/pytest -q -n auto tests

.venv-lowest/lowest.stamp: pyproject.toml tests/lowest.txt $(wildcard lpips_lightning/* lpips_lightning/*/* callbacks/* recipes/* weights/*)
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --progress-bar off -q ".[test]" -c tests/lowest.txt
	touch $@

# For example: make bench BENCH="--quick", or BENCH="--nets vgg --sizes 4x256 --parts timing memory"
bench: $(VENV)/test.stamp
	$(BIN)/python tests/benchmarks/run.py $(BENCH)

tutorial: $(VENV)/test.stamp
	$(BIN)/python .ci/tutorial.py

docs: $(VENV)/docs.stamp
	$(BIN)/python .ci/docs.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pip install -q --no-deps --upgrade --target .mypy_cache/site .
	MYPYPATH=.mypy_cache/site $(BIN)/mypy

# An environment per extra, each installed once per change of pyproject.toml.
$(VENV)/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -q -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
