# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Two processes, each with a Ray of its own, since tests wait for Ray more than they compute.
PYTEST := $(BIN)/python -m pytest -n 2
INSTALLED := .venv/.installed

.PHONY: install demo test test-slow lint bench docs clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt setuptools
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/pe-ray run pipelines/digits.yaml

test: install
	$(PYTEST) --dist loadfile -m "not slow"

# Apart, since these tests start and kill whole programs with a Ray of their own.
test-slow: install
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.scale --expand 10000000
	$(BIN)/python -m benchmarks.scaling
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.diffusion
	$(BIN)/python -m benchmarks.digits.renderer
	$(BIN)/python -m benchmarks.digits.pipeline
	$(BIN)/python -m benchmarks.digits.expansion

# The page that lists every key, from the configuration's models.
docs: install
	$(BIN)/python -m docs.generate

clean:
	rm -rf .venv runs
