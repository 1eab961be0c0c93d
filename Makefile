# make demo | make test | make lint | make drill: each sets up .venv on first use and reuses it after.
#   make setup PYTHON=python3.12              another interpreter
#   make setup PIP_FLAGS="--extra-index-url …"  another source of wheels (see README, "Installing")
#   make drill DRILL="--seeds 2 --only node disk"   a few of the drills
#   make setup VENV_FLAGS=--system-site-packages CONSTRAINTS=/dev/null   keep an installed torch
PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
PIP_FLAGS ?=
CONSTRAINTS ?= constraints.txt
DRILL ?=
BIN := $(VENV)/bin
# Ray starts a process per actor, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test test-slow drill lint clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"clusterray needs Python 3.11 to 3.13, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@echo "installing into $(VENV) (torch, Ray and the rest; a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c $(CONSTRAINTS) -e '.[dev,s3]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m jobs.demo --config jobs/demo.toml

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

drill: $(INSTALLED)
	$(BIN)/python -m tests.ray.drill $(DRILL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
