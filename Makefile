# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.

VENV := .venv
BIN := $(VENV)/bin
TORCHVISION := $(VENV)/torchvision-for-tests
# Tests run with two workers; see tests/conftest.py. None takes a crashed one's
# place, which may hang: https://github.com/pytest-dev/pytest-xdist/issues/1323
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo test test-quick lint clean setup

demo: setup
	$(BIN)/rdmldg demo

# The quick tests first, and by themselves: no Ray in their process. Of the slow ones most time goes to starting
# processes, which two at a time overlap.
# torchvision lies apart from the rest, since transformers imports it wherever it is installed, which fails
# beside the CPU build of torch; see tests/engines/test_families_real.py.
test: test-quick
	@test -d $(TORCHVISION) || $(BIN)/pip install --no-deps --target $(TORCHVISION) torchvision==0.28.0
	OMP_NUM_THREADS=1 $(PYTEST) -m slow

test-quick: lint
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PYTHON=... and TORCH_INDEX=... reach it; see there.
setup:
	@tools/setup.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
