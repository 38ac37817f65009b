# Everything from a bare machine: Python 3.11 to 3.13 and make. `make demo`, `make test`.
# With EXTRA=gpu or EXTRA=tpu the environment has JAX for CUDA 12 or TPUs.
PYTHON ?= python3
EXTRA ?=
UV := .uv/bin/uv
PY := .venv/bin/python
# Tests start hundreds of processes, which import in a third of the time what is kept as bytecode;
# PYTHONDONTWRITEBYTECODE, as containers set it, would have each compile JAX and TensorFlow anew.
KEEP_BYTECODE := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$(CURDIR)/.cache/bytecode"
PYTEST := $(KEEP_BYTECODE) $(PY) -m pytest -n 2 --dist worksteal
FAST_COMPILE := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

.PHONY: demo test test-long test-fast lint lock clean

# Segments the embedded painted world with the embedded tiny CLIP; prints the table.
demo: .venv/.done
	$(PY) -m clipseg_jax.main --config=configs/demo_maskclip.py --workdir=workdir/demo_maskclip

# Every test, then style and types. The goldens are checked with programs as users run them; the
# others compile in a third of the time with less optimisation.
test: .venv/.done
	$(PYTEST) tests/parity
	$(FAST_COMPILE) $(PYTEST) --ignore=tests/parity
	$(MAKE) lint

# What takes minutes each, one after the other: for a release. With the TPU's compiler.
test-long: .venv/.done
	$(UV) sync --locked --extra data --extra test --extra aot-tpu --python $(PYTHON)
	$(KEEP_BYTECODE) $(PY) -m pytest --long -m long

# For daily work: what takes seconds; the goldens are left out.
test-fast: .venv/.done
	$(FAST_COMPILE) $(PYTEST) --ignore=tests/parity -m "not slow"

lint: .venv/.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# uv goes into a folder of its own: no system packages are touched, no python3-venv is needed.
$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv 'uv>=0.9'

ifneq ($(EXTRA),)
.PHONY: .venv/.done  # which extras it has is not known
endif
.venv/.done: uv.lock pyproject.toml | $(UV)
	$(UV) sync --locked --extra data --extra test $(addprefix --extra ,$(EXTRA)) --python $(PYTHON)
	touch $@

lock: | $(UV)
	env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL $(UV) lock

clean:
	rm -rf .venv .uv .cache build *.egg-info
