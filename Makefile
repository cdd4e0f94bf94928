# What people and CI run. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
UV := $(VENV)/uv/bin/uv
UV_VERSION := 0.13.9
PYTHON ?= python3.11
# uv does not read pip's configuration: wheels that this machine keeps for pip are good for uv as well.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Python keeps what it compiles: vLLM would take 20 s longer at every start.
export PYTHONDONTWRITEBYTECODE :=
AIRFLOW_LOCK := images/airflow/requirements.txt
# cpu or cuda; the CPU build of PyTorch comes from PyTorch's own index, or from the wheels that this machine keeps.
WORKER ?= cpu
WORKER_LOCK := images/worker/requirements-$(WORKER).txt
TORCH := $(if $(UV_FIND_LINKS)$(filter cuda,$(WORKER)),,--torch-backend cpu)
SHIM := $(if $(filter cpu,$(WORKER)),images/worker/vllm-cpu)
JUDGE_LOCK := images/judge/requirements.txt
COMPILE := $(UV) pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "make locks" pyproject.toml
PACKAGE := pyproject.toml images/worker/vllm-cpu/pyproject.toml
# Nothing is installed for these before the machine is found large enough. PREFLIGHT= goes on without a check.
PREFLIGHT := $(if $(filter demo up,$(MAKECMDGOALS)),preflight)
FAST := $(VENV)/dev/bin/pytest -n auto --dist worksteal --ignore tests/real --ignore tests/kubernetes
# Half of the time they wait for servers, so there are two at once; those with vLLM are never two.
REAL := $(VENV)/dev/bin/pytest tests/real -n 2 --dist loadgroup
IMAGES := airflow worker judge
# Docker with BuildKit, or: buildah bud --layers --isolation chroot --network host
BUILD ?= docker build
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
COMMIT = $(shell git describe --always --abbrev=40 --exclude '*' --dirty=+dirty)
# An image is for a cluster with GPUs, unless somebody says otherwise; the environments above are for this machine.
WORKER_IMAGE = $(if $(filter file,$(origin WORKER)),cuda,$(WORKER))

.PHONY: help demo preflight test test-all test-fast chaos cluster-test cluster-test-all lint index bench-table bench-report \
    bench-judge bench-gpu-hours bench-parse bench-night docs up locks images \
    $(IMAGES:%=image-%) release clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## install, evaluate two small checkpoints, print the table
	@$(VENV)/airflow/bin/python -m halos_eval.demo.run

preflight:
	@sh halos_eval/demo/preflight.sh $(PYTHON) $(VENV) $(WORKER)

test: $(VENV)/dev/.done $(VENV)/every-eval-ever/.done $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## install what is needed and run all tests, the fast ones first
	$(FAST)
	$(REAL) -m "not slow"

test-all: $(VENV)/dev/.done $(VENV)/every-eval-ever/.done $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## `make test` and what is too slow for every commit
	$(FAST)
	$(REAL)

test-fast: $(VENV)/dev/.done $(VENV)/every-eval-ever/.done ## only the tests that start nothing
	$(FAST)

chaos: $(VENV)/dev/.done $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## a night in which everything is killed (SEED=1 CHECKPOINTS=20 KILLS=40)
	SEED=$(or $(SEED),1) CHECKPOINTS=$(or $(CHECKPOINTS),20) KILLS=$(or $(KILLS),40) $(VENV)/dev/bin/pytest \
	    --timeout 7200 -o log_cli=true -o log_cli_level=WARNING tests/real/test_chaos.py

cluster-test: $(VENV)/dev/.done $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## the tests on Kubernetes (tests/kubernetes/run.sh)
	tests/kubernetes/run.sh

cluster-test-all: $(VENV)/dev/.done $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## `make cluster-test` and what is too slow for every commit
	tests/kubernetes/run.sh kubernetes

lint: $(VENV)/dev/.done ## style, types, import borders and words; changes nothing
	$(VENV)/dev/bin/ruff check .
	$(VENV)/dev/bin/ruff format --check .
	$(VENV)/dev/bin/mypy
	$(VENV)/dev/bin/lint-imports
	$(VENV)/dev/bin/python tests/check_words.py

index: $(VENV)/judge/.done ## write the index of alpaca_eval's judges again, after its pin has changed
	$(VENV)/judge/bin/python -W ignore -m halos_eval.stages.judge.installed > $(VENV)/index.json
	mv $(VENV)/index.json halos_eval/shipped/alpaca_eval.json

bench-table: $(VENV)/dev/.done ## time, requests and memory of a large table, beside HALOs' rule on logs
	$(VENV)/dev/bin/python -m benchmarks.table

bench-report: $(VENV)/dev/.done $(VENV)/airflow/.done ## time, requests, memory and bytes of the report of 2,000 checkpoints, and the plugin's answers
	$(VENV)/dev/bin/python -m benchmarks.report

bench-judge: $(VENV)/judge/.done ## time of judging 805 pairs, beside alpaca_eval's own command and a bare client
	$(VENV)/judge/bin/python -m benchmarks.judge

bench-gpu-hours: $(VENV)/dev/.done $(VENV)/worker/.done ## seconds of loading and work: a pod for each task, packed, and the bare lm_eval
	$(VENV)/dev/bin/python -m benchmarks.gpu_hours

bench-parse: $(VENV)/airflow/.done ## processor time of parsing each DAG, beside its Airflow imports
	$(VENV)/airflow/bin/python -m benchmarks.parse

bench-night: $(VENV)/dev/.done $(VENV)/airflow/.done ## Airflow's processor time, memory and delays over a night (NIGHT="4 3" is a small one)
	$(VENV)/dev/bin/python -m benchmarks.night $(NIGHT)

docs: $(VENV)/dev/.done ## write docs/settings.md from the code
	$(VENV)/dev/bin/python -m halos_eval.config.settings_page > docs/settings.md

up: $(VENV)/airflow/.done $(VENV)/worker/.done $(VENV)/judge/.done ## Airflow's UI and scheduler on this machine, until Ctrl-C
	@$(VENV)/airflow/bin/python -m halos_eval.demo.up

locks: $(UV) ## resolve all locks again (the CUDA lock is resolved from the registry alone)
	$(COMPILE) images/airflow/requirements.in --extra airflow -o $(AIRFLOW_LOCK)
	$(COMPILE) images/judge/requirements.in --extra judge -o $(JUDGE_LOCK)
	$(COMPILE) $(TORCH) images/worker/requirements.in images/worker/cpu.in --extra worker \
	    --override images/worker/cpu-overrides.txt -o images/worker/requirements-cpu.txt
	UV_FIND_LINKS= $(COMPILE) images/worker/requirements.in --extra worker \
	    --python-platform x86_64-manylinux_2_35 -o images/worker/requirements-cuda.txt
	$(COMPILE) requirements-dev.in --extra airflow -c $(AIRFLOW_LOCK) -o requirements-dev.txt

images: $(IMAGES:%=image-%) ## build the container images (WORKER=cpu: without GPUs; BUILD="buildah bud ...": without Docker)

image-worker: BUILD_ARGS = --build-arg WORKER=$(WORKER_IMAGE) \
    $(if $(filter cpu,$(WORKER_IMAGE)),$(UV_FIND_LINKS:%=--build-context wheels=%))

$(IMAGES:%=image-%): image-%:
	$(BUILD) -f images/$*/Dockerfile -t docker.io/halos-eval/$*:$(VERSION) --build-arg UV_VERSION=$(UV_VERSION) \
	    --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) $(BUILD_ARGS) .

release: $(UV) ## the wheel, the images' contexts, the chart and Airflow's values of the current commit, in dist/
	release/build.sh $(UV) $(PYTHON)

clean: ## remove the environments (what was evaluated, in var/, stays)
	rm -rf $(VENV)

$(UV): | $(PREFLIGHT)
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)

# Only files: the schema against which a test validates `halos-eval export`.
$(VENV)/every-eval-ever/.done: tests/exporters/every-eval-ever.txt | $(UV) $(VENV)/dev/.done
	$(UV) pip install -q --no-deps --require-hashes --python-version 3.12 --python $(VENV)/dev/bin/python \
	    --target $(VENV)/every-eval-ever -r $<
	touch $@

# Each environment is an image's: made from its lock, with the package installed in it (in place, so edits count).
define environment
$(VENV)/$(1)/.done: $(2) $(PACKAGE) | $(PREFLIGHT) $(UV)
	@echo "environment $(1): installing from $(2)"
	$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)/$(1)
	$(UV) pip sync -q $(4) --require-hashes --python $(VENV)/$(1)/bin/python $(2)
	$(UV) pip install -q --no-deps --python $(VENV)/$(1)/bin/python -e . $(3)
	touch $$@
endef
$(eval $(call environment,airflow,$(AIRFLOW_LOCK),,))
$(eval $(call environment,worker,$(WORKER_LOCK),$(SHIM),$(TORCH)))
$(eval $(call environment,judge,$(JUDGE_LOCK),,))
$(eval $(call environment,dev,requirements-dev.txt,,))
