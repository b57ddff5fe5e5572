# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A copy of the pins that .venv was made from: other pins, another .venv.
PINS := $(VENV)/requirements-cpu.txt

TORCHVISION := $(VENV)/torchvision-for-tests

.PHONY: demo test lint clean setup

demo: setup
	$(BIN)/rdmldg demo

# The quick tests first, and by themselves: no Ray in their process.
# torchvision lies apart from the rest, since transformers imports it wherever it is installed, which fails
# beside the CPU build of torch; see tests/engines/test_families_real.py.
test: lint
	@test -d $(TORCHVISION) || $(BIN)/pip install --quiet --no-deps --target $(TORCHVISION) torchvision==0.28.0
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# --no-deps because the pins are the full set, and because some packages name dependencies that are
# not wanted on a CPU (torchvision has no build that fits torch's CPU build).
setup:
	@cmp -s requirements-cpu.txt $(PINS) || { \
		set -e; \
		echo "installing the pinned packages into $(VENV) (3 GB, a few minutes)"; \
		rm -rf $(VENV); \
		$(PYTHON) -m venv $(VENV); \
		$(BIN)/pip install --quiet --no-deps -r requirements-cpu.txt; \
		$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .; \
		cp requirements-cpu.txt $(PINS); \
	}

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
