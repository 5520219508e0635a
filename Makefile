# make demo: the whole way, from text to a model.
# make test: the tests, some 10 minutes on two cores.   make test-fast: those that start no processes, under 2 minutes.
# make test-long: those that make test leaves out.   make test-cluster: all those on several hosts, with the packages that they
# need; root, on Debian or Ubuntu (make test runs some of them where it can, and says why where it cannot).
# make bench: all benchmarks at small sizes, some minutes; BENCH='--output FILE' keeps the figures. All of them make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-fast test-long test-cluster cluster-packages bench lint clean

setup: $(VENV)/ready

# The stamp comes last, so that an interrupted installation is taken up again.
$(VENV)/ready: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo "error: $(PYTHON) is $$($(PYTHON) --version); take Python 3.10 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into $(VENV), once; it takes a minute or two ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: setup
	@bash launch/demo.sh

# Four workers on two cores: many tests wait for processes, time limits and networks. torch's threads would spin while they wait.
test: setup lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-fast: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long and not process"

test-long: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

test-cluster: setup cluster-packages
	@$(BIN)/python -m tests.cluster.requirements
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/cluster -m ''

cluster-packages: setup
	@$(BIN)/python -m tests.cluster.packages

bench: setup
	@$(BIN)/python benchmarks/bench_all.py $(BENCH)

lint: setup
	@$(BIN)/ruff format --check --quiet . || { echo "error: run '.venv/bin/ruff format .'"; exit 1; }
	@$(BIN)/ruff check --quiet .

clean:
	rm -rf $(VENV) runs sample
