# `make` lists what can be done. Everything that takes long to make is kept in one folder (empty = bare machine):
POOLFLEET_CACHE ?= $(HOME)/.cache/poolfleet
POOLFLEET_BIN ?= $(POOLFLEET_CACHE)/kind/bin
export POOLFLEET_CACHE POOLFLEET_BIN
export PYTHONPATH := operator:.
export KUBECONFIG := $(CURDIR)/.cluster/kubeconfig
# from Go's own installer too, where no shell profile was read
export PATH := $(POOLFLEET_BIN):$(PATH):/usr/local/go/bin

VENV := $(POOLFLEET_CACHE)/venv/bin
PYTEST := $(VENV)/python -m pytest
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

##@ Start here
.PHONY: help demo test
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "What is slow to make is kept in POOLFLEET_CACHE=$(POOLFLEET_CACHE)"

demo: cluster ## A cluster, PostgreSQL and a pool; 500 clients without and with Poolfleet, side by side
	@$(VENV)/python hack/demo.py

test: ## Every check there is: starts what it needs, leaves the cluster up for the next run
	@hack/steps.sh lint unit property integration cluster e2e

##@ Checks
.PHONY: venv lint fmt unit property integration e2e bench soak
venv: ## The Python environment of tests and tools
	@hack/venv.sh >/dev/null

lint: venv ## ruff, mypy --strict, import-linter, shellcheck
	@hack/lint.sh

fmt: venv ## Format the Python code and mend what ruff can mend
	@$(VENV)/ruff check --fix --quiet . || true
	@$(VENV)/ruff format .

unit: venv ## Unit tests (seconds; nothing is started)
	@hack/kind/binaries.sh helm
	@$(PYTEST) -q tests/unit

property: venv ## Property tests (Hypothesis; some with real PgBouncer and PostgreSQL processes)
	@hack/integration-needs.sh
	@$(PYTEST) -q tests/property -m "not soak"

integration: venv ## Tests against real PgBouncer, PostgreSQL and kube-apiserver processes
	@hack/integration-needs.sh
	@$(PYTEST) -q tests/integration

e2e: cluster ## Tests on the kind cluster
	@$(PYTEST) -q tests/e2e -m "not soak"

bench: cluster ## Throughput, memory and latency figures, printed side by side
	@$(VENV)/python -m bench.run $(ARGS)

soak: cluster ## Tests that run for long
	@HYPOTHESIS_PROFILE=soak $(PYTEST) -q tests -m soak

##@ Cluster
.PHONY: cluster cluster-down images
cluster: venv ## kind cluster `poolfleet` with the images loaded and the chart installed; does only what has changed
	@hack/cluster.sh

cluster-down: ## Delete that cluster
	@hack/kind/down.sh

images: venv ## Build the images into the local Docker daemon
	@hack/kind/docker.sh
	@hack/images.sh

##@ Generated files
.PHONY: crds docs lock clean
crds: venv ## crds/*.yaml, and the chart's copies, from the models
	@$(VENV)/python -m poolfleet crds crds
	@charts/sync-crds.sh

docs: venv ## docs/reference.md from the models
	@$(VENV)/python -m poolfleet docs

lock: ## requirements.lock: the newest versions that pyproject.toml allows
	@hack/venv.sh --upgrade >/dev/null

clean: ## Remove what tools leave in the checkout (not the cache, not the cluster)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info operator/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
