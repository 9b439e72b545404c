# The first target that you make creates a .venv from requirements.lock.
#
#   make quickstart   every figure of the paper from real images, on a laptop's CPU
#   make test         unit, workflow and integration tests; numerical tests also with AVX2 kernels
#   make test-all     also the slow tests, and other versions of Python and torch
#   make test-slurm   tests on a SLURM cluster on this machine; as root, installs Debian packages
#   make bench        speed against reference loops, minutes; also bench-full, bench-gpu
#   make gpu-window   prepares 15 minutes on a GPU without a network; see docs/performance.md
#   make figures      draw figures, Table 1 and claims from the shipped tables of real runs
#   make study NAME=separation   a study of config/studies; see docs/studies.md
#   make docs         the documentation as a site, site/index.html
#   make lint         ruff, snakefmt and snakemake --lint

PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
CONFIG ?= config/quickstart.yaml
RECIPES := workflow/neural_collapse/results/paper_recipes.json
BIN := $(VENV)/bin
# The longest tests come first, as pyproject.toml lists them.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
COMPUTING := tests/unit/training tests/unit/networks tests/unit/collapse \
  tests/integration/test_resume.py::test_a_job_killed_many_times_ends_with_the_same_bits
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
STAMP := $(VENV)/.made
SNAKEMAKE := test -f "$(CONFIG)" || { echo "there is no config $(CONFIG)"; exit 1; }; \
  $(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)

.DEFAULT_GOAL := help
.PHONY: help quickstart report figures study plan test test-all test-slurm bench bench-full bench-gpu gpu-window docs lint format lock schema config-page clean

help:
	@sed -n 's/^#   //p' Makefile

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "$(PYTHON) is not Python 3.11 to 3.13; set another, for example make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(STAMP)
	@$(SNAKEMAKE) --quiet rules host
	@echo "Figures, tables and report.html: results/$$(awk '/^experiment:/ {print $$2}' $(CONFIG))"

# A config on the command line draws your own runs: make figures CONFIG=config/quickstart.yaml
figures: $(STAMP)
ifeq ($(origin CONFIG),command line)
	@$(SNAKEMAKE) --quiet rules host -- figures tables
else
	@$(BIN)/neural-collapse draw-reference --processes $(CORES)
endif

study: $(STAMP)
	@test -f config/studies/$(NAME).yaml \
	  || { echo "unknown study NAME=$(NAME); known: $(basename $(notdir $(wildcard config/studies/*.yaml)))"; exit 1; }
	@$(BIN)/snakemake --cores $(CORES) --configfile config/studies/$(NAME).yaml --quiet rules host
	@echo "Figures, tables and report.html: results/$(NAME)"

report: $(STAMP)
	@$(SNAKEMAKE) --quiet rules host -- report

plan: $(STAMP)
	@$(BIN)/neural-collapse plan --config $(CONFIG)

# Kernels differ between processors: numerical tests also run with AVX2 kernels.
test: $(STAMP)
	@$(PYTEST) -m "not slow" --durations 20
	@$(AVX2) $(PYTEST) -m "not slow" $(COMPUTING)

test-all: $(STAMP)
	@$(PYTEST) --durations 20
	@$(AVX2) $(PYTEST) $(COMPUTING)
	@tests/versions.sh $(COMPUTING)

test-slurm: $(STAMP)
	@NC_INSTALL_SLURM=1 $(BIN)/python -m pytest -q tests/slurm

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open site/index.html"

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

bench-full bench-gpu: bench-%: $(STAMP)
	@$(BIN)/python -m benchmarks --form $*

MIRROR ?= $(NC_DATA_MIRROR)
gpu-window:
	@PYTHON=$(PYTHON) benchmarks/gpu_window.sh prepare $(MIRROR)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/snakemake --lint --configfile $(CONFIG)

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/snakefmt Snakefile workflow/rules

# For maintainers: needs uv.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --extra pipeline --extra workflow --extra test --extra docs --extra adapters -o requirements.lock pyproject.toml

schema: $(STAMP)
	@$(BIN)/neural-collapse config-schema > workflow/schemas/config.schema.json
	@$(BIN)/python -c 'from neural_collapse.experiment.config import load_config; from neural_collapse.experiment.generated import paper_recipes_json; print(end=paper_recipes_json(load_config("config.yaml")))' > $(RECIPES).new
	@mv $(RECIPES).new $(RECIPES)

config-page: $(STAMP)
	@$(BIN)/neural-collapse config-page > config/README.md

clean:
	rm -rf $(VENV)
