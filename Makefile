# Everything a newcomer runs. `make` alone lists the targets.
#
# The environment is .venv, made on first use, unless the active one (virtualenv or conda) already
# holds every version that requirements-dev.txt pins. `make PYTHON=/path/to/python3.11` chooses the
# Python that .venv is made with.

VENV := .venv
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)

ACTIVE := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),$(CONDA_PREFIX))
ifneq ($(ACTIVE),)
ifneq ($(realpath $(ACTIVE)),$(realpath $(VENV)))
ACTIVE_FITS := $(shell "$(ACTIVE)/bin/python" tools/check_environment.py --quiet && echo yes)
endif
endif

ifeq ($(ACTIVE_FITS),yes)
ENV_PYTHON := $(ACTIVE)/bin/python
# A phony target: this environment is not ours and may have changed since the last call.
ENV_READY := active-environment
else
ENV_PYTHON := $(VENV)/bin/python
ENV_READY := $(VENV)/.kd_search_ready
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
#: The instruction sets of an old x86 processor and of one with AVX2, for torch (its own kernels,
#: MKL, oneDNN) and for numpy's OpenBLAS.
OLD_CPU := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE DNNL_MAX_CPU_ISA=SSE41 \
	OPENBLAS_CORETYPE=Prescott
AVX2_CPU := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 DNNL_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell

# One process for each of two cores. Idle workers take consecutive tests, which share fixtures.
PYTEST := "$(ENV_PYTHON)" -m pytest -n 2 --dist=worksteal

.PHONY: help setup demo test test-cpus coverage lint typecheck docs wheel format hooks \
	active-environment

help:
	@echo "make demo    set up, then the main job: data, teacher, students, evaluation, report"
	@echo "make test    set up, then the whole test suite"
	@echo "make test-cpus  the test suite three times: as an old processor, as one with AVX2, with two threads"
	@echo "make coverage  the test suite, then the lines of kd_search that it does not run"
	@echo "make lint    set up, then ruff: rules and formatting, without changes"
	@echo "make typecheck  set up, then mypy"
	@echo "make docs    set up, then the documentation as a site, in output/site"
	@echo "make wheel   set up, then build the wheel, install it apart from the checkout and use it"
	@echo "make format  set up, then ruff: fix what it can fix"
	@echo "make hooks   set up, then run the linter before each git commit"
	@echo "make setup   only the set-up"

setup: $(ENV_READY)

demo: $(ENV_READY)
	"$(ENV_PYTHON)" tools/demo.py $(ARGS)

test: $(ENV_READY)
	$(PYTEST) $(ARGS)

coverage: $(ENV_READY)
	$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)

test-cpus: $(ENV_READY)
	$(OLD_CPU) $(PYTEST) $(ARGS)
	$(AVX2_CPU) $(PYTEST) $(ARGS)
	KD_SEARCH_TEST_THREADS=2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(PYTEST) $(ARGS)

lint: $(ENV_READY)
	"$(ENV_PYTHON)" -m ruff check .
	"$(ENV_PYTHON)" -m ruff format --check .

# The scripts of a project import each other by bare names, which several projects use.
typecheck: $(ENV_READY)
	"$(ENV_PYTHON)" -m mypy
	@set -e; for project in projects/*/; do \
		echo mypy $$project; "$(ENV_PYTHON)" -m mypy $$project; done

# NO_MKDOCS_2_WARNING: the theme advertises at length against the next version of its base.
docs: $(ENV_READY)
	NO_MKDOCS_2_WARNING=1 "$(ENV_PYTHON)" -m mkdocs build --strict $(ARGS)

wheel: $(ENV_READY)
	.ci/check_wheel "$(ENV_PYTHON)"

format: $(ENV_READY)
	"$(ENV_PYTHON)" -m ruff check --fix .
	"$(ENV_PYTHON)" -m ruff format .

hooks: $(ENV_READY)
	"$(ENV_PYTHON)" -m pre_commit install

# setuptools warns at length that an editable package can be shadowed by a folder of its name.
define install_detectron2_and_project
	"$(ENV_PYTHON)" tools/install_detectron2.py
	PYTHONWARNINGS=ignore "$(ENV_PYTHON)" -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
endef

active-environment:
	@echo "==> set-up: the active environment has every pinned version: $(ACTIVE)"
	$(install_detectron2_and_project)

$(VENV)/.kd_search_ready: requirements.txt requirements-dev.txt setup.py pyproject.toml \
		kd_search/cli/doctor.py kd_search/cli/install_detectron2.py kd_search/cli/detectron2_patches.py
	@rm -f $@
	@echo "==> set-up 1 of 4: $(VENV), with $(PYTHON)"
	$(if $(PYTHON),,$(error no Python found: install Python 3.11 or name one with PYTHON=...))
	@$(PYTHON) tools/check_environment.py --python-only
	@"$(ENV_PYTHON)" -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "make: $(PYTHON) cannot make $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "==> set-up 2 of 4: pinned packages (torch is several GB: this takes some minutes)"
	"$(ENV_PYTHON)" -m pip install --disable-pip-version-check --requirement requirements-dev.txt
	@echo "==> set-up 3 of 4: Detectron2;  4 of 4: kd_search"
	$(install_detectron2_and_project)
	@"$(ENV_PYTHON)" tools/check_environment.py
	@touch $@
	@echo "==> set-up done"
