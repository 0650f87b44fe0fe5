# `make retrieval` and `make test` are all a newcomer needs: both set up .venv from requirements.txt.
# `make install TORCH=cpu` sets it up with PyTorch's build without CUDA, from PyTorch's own index; the
# other packages, and everything without TORCH=cpu, are from the index that pip is set up for.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STORAGE ?= mmray-runs
PORT ?= 5000
ARGS ?=
# A .venv keeps the build of PyTorch that it has; TORCH=cpu makes one with the other build anew.
TORCH ?= $(if $(wildcard .venv/.torch-cpu),cpu)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ANEW = $(if $(filter cpu,$(TORCH)),$(if $(wildcard .venv/.torch-cpu),,anew))
# By uv where it is; by pip where it is not, or where it fails: it does not read pip's settings of an index.
UV ?= $(shell command -v uv)
with_pip = $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile $(1)
installed = $(if $(UV),{ $(UV) pip install --quiet --python $(BIN)/python $(1) || $(with_pip); },$(with_pip))
# One word of the shell, whatever characters are in it.
quoted = '$(subst ','\'',$(1))'
# MLflow's database in the storage, as a URI: any Python can tell it.
DATABASE = $(shell $(PYTHON) -m mmray.pipeline.database $(call quoted,$(value STORAGE)))
JOBS := $(wildcard jobs/*.py)
# A link or an anchor that leads nowhere fails it (with --quiet it would not). Material has news of its makers.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
PYTEST = -m pytest -n logical --maxprocesses 8

.PHONY: install anew retrieval test-fast test test-all check check-next site ui cluster-demo clean

install: .venv/.installed

.venv/.installed: requirements.txt requirements-gpu.txt requirements-dev.txt pyproject.toml $(ANEW)
	$(PYTHON) -m venv $(ANEW:%=--clear) .venv
ifeq ($(TORCH),cpu)
	$(call installed,--no-deps --index-url $(TORCH_INDEX) $$(grep -E '^torch(vision)?==' requirements.txt))
	touch .venv/.torch-cpu
endif
	$(call installed,-r requirements.txt -r requirements-dev.txt)
ifneq ($(TORCH),cpu)
	if command -v nvidia-smi > /dev/null; then \
	  $(BIN)/python -m pip uninstall --quiet --yes faiss-cpu && $(call installed,-r requirements-gpu.txt); fi
endif
	$(call installed,--no-deps --editable .)
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # pip would on one CPU; some files are templates
	touch $@

retrieval: install
	$(BIN)/python jobs/retrieval.py --storage $(call quoted,$(value STORAGE)) $(ARGS)

# What needs no Ray and no process of its own.
test-fast: install
	$(BIN)/python $(PYTEST) -m "not (ray or process or slow)" $(ARGS)

# All but the slow: two workers have a Ray each for the tests that need one, and share the rest.
test: install
	$(BIN)/python $(PYTEST) $(ARGS)

# With those that take minutes each: training killed anywhere, on a cluster of two nodes.
test-all: install
	$(BIN)/python $(PYTEST) -m "slow or not slow" $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=jobs:cluster $(BIN)/mypy -p mmray -p benchmarks -m demo -m drain_on_notice -m certificates $(JOBS:jobs/%.py=-m %)
	$(BIN)/lint-imports
	$(BIN)/python .ci/docstrings.py
	$(SITE)

# Tests of all that meets Ray, on the newest one that the index has; the other packages as pinned.
check-next: NEXT := .venv-next
check-next:
	$(PYTHON) -m venv $(NEXT)
	sed 's/^\(ray\[.*\]\)==.*/\1/' requirements.txt > $(NEXT)/requirements.txt
	$(NEXT)/bin/python -m pip install --disable-pip-version-check --quiet --upgrade -r $(NEXT)/requirements.txt -r requirements-dev.txt
	$(NEXT)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@$(NEXT)/bin/python -c "import ray; print('Ray', ray.__version__)"
	$(NEXT)/bin/python $(PYTEST) tests/pipeline $(ARGS)

# The documents and the API: build/site/index.html.
site: install
	$(SITE)

# The job-execution workers of MLflow are not needed to look at runs, and nobody is to be told of it.
ui: export MLFLOW_DISABLE_TELEMETRY = true
ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
ui: install
	@$(BIN)/python -m mmray.pipeline.database --ready $(call quoted,$(value STORAGE))
	@echo "open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri $(call quoted,$(DATABASE))

# A head, an autoscaler and two workers on this machine: see cluster/demo.py.
# Fewer photos and epochs than `make retrieval` has, unless other flags are given.
cluster-demo: ARGS = --demo.objects 6 --demo.photos 8 --demo.distractors 8 --extraction.shard-size 8 \
  --recipe steady --rounds 1 --training.epochs 2
cluster-demo: install
	$(BIN)/python cluster/demo.py --storage $(call quoted,$(value STORAGE)/cluster-demo) $(ARGS)

clean:
	rm -rf .venv .venv-next build *.egg-info
