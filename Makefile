# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip
BASE := .venv/.base
INSTALLED := .venv/.installed
# Two processes, each with its own Ray: tests wait for Ray more than they compute. One thread each:
# with one for each core, networks and searches of the two would wait for each other's threads.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --no-annotate

.PHONY: install demo test test-all lint docs wheel lock bench bench-natural gpu clean

install: $(INSTALLED)

# What the demo needs: no extras, so no torch. Versions are those of the lock.
$(BASE): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint requirements.txt --editable .
	touch $@

# All extras and the development tools, on top of it.
$(INSTALLED): $(BASE) requirements-dev.txt
	$(PIP) install --quiet --requirement requirements-dev.txt
	touch $@

demo: $(BASE)
	$(BIN)/pe-ray run pipelines/digits.yaml

test: install
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow"

# The slow ones apart: they start and kill whole programs with their own Ray.
test-all: test
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The page of all keys from the configuration's models, then the site; a broken link is an error.
docs: install
	$(BIN)/python -m docs.generate
	$(BIN)/zensical build --strict --clean

wheel: $(BASE)
	rm -rf build dist
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .

# Keeps the versions that it can: `make lock UPGRADE=--upgrade` takes the newest of all.
lock: install
	$(LOCK) $(UPGRADE) --all-extras --group dev --output-file requirements-dev.txt pyproject.toml
	$(LOCK) $(UPGRADE) --all-extras --constraint requirements-dev.txt --output-file requirements.txt pyproject.toml

bench: install
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.scale --expand 10000000
	$(BIN)/python -m benchmarks.scaling
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.diffusion
	$(BIN)/python -m benchmarks.digits.renderer
	$(BIN)/python -m benchmarks.digits.pipeline
	$(BIN)/python -m benchmarks.digits.expansion

# All that needs a GPU, in ten minutes on one of 80 GB; writes benchmarks/gpu.md.
gpu: install
	$(BIN)/python -m benchmarks.gpu

# Ways to a final set of public images, on half of Tiny-ImageNet: half an hour on two cores.
bench-natural: install
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.natural.finite \
	  $(or $(PE_RAY_DATA),../shared/data)/tiny_imagenet_25k.parquet --output runs/natural

clean:
	rm -rf .venv build dist runs site
