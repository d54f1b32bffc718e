# SPDX-License-Identifier: Apache-2.0
# make demo   install into .venv and run the shipped FedCoT pipeline, a process for each party
# make test   install with the test tools and run the tests
# make generate  renew schemas/generated, docs/catalogue.md, docs/cli.md and docs/bad-input.md
# make check  style, types, import layers, generated files
# make dev    links that let mypy and editable installs see the package as one tree
#
# The CPU build of torch is all that is needed. Where your package index serves a CUDA build under the plain version,
# name one that has the CPU build: make test TORCH_INDEX=URL
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
FOLDERS := schemas plugins components runtime pipelines
CODE := $(shell find src $(FOLDERS) -type f -not -path '*/__pycache__/*' -not -name '.*' 2>/dev/null)
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-whole check dev install generate clean

demo: $(VENV)/.installed
	$(BIN)/osmotic run fedcot --isolate

test: $(VENV)/.dev $(VENV)/.example
	$(BIN)/pytest -n auto --dist loadfile

# All of it: whole deployments over NVFlare that are killed, frozen and followed word for word, and the longest kills, too.
test-whole: $(VENV)/.dev $(VENV)/.example
	OSMOTIC_WHOLE=1 $(BIN)/pytest -n auto --dist loadfile

check: dev $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	.ci/types $(BIN)
	$(BIN)/lint-imports
	$(BIN)/osmotic schema --check
	$(BIN)/python .ci/generated

generate: $(VENV)/.dev
	$(BIN)/python .ci/generated --write
	$(BIN)/python tests/bad/cases.py

dev:
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder src/osmotic/$$folder; done

install: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@$(BIN)/python -W ignore -c 'import sys, torch; sys.exit("torch is a CUDA build; see TORCH_INDEX in the Makefile" if torch.version.cuda else 0)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(CODE)
	rm -rf build
	$(PIP) install -q -c constraints.txt .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(CODE)
	rm -rf build
	$(PIP) install -q -c constraints.txt '.[dev,deepspeed,dp,eval,nvflare,openai,smollm2,tables]'
	@touch $@ $(VENV)/.installed

$(VENV)/.example: $(VENV)/.dev $(shell find tests/plugin_example -type f -not -path '*/__pycache__/*' -not -path '*/build/*' -not -path '*.egg-info/*' 2>/dev/null)
	$(PIP) install -q --no-deps ./tests/plugin_example
	@touch $@

clean:
	rm -rf build dist *.egg-info $(addprefix src/osmotic/,$(FOLDERS))
