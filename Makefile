# What a person does with this folder. `make` alone says it.

# No rule here names a file that another rule makes, so nothing is gained by a parallel make, and
# the output of two installers at once helps nobody.
.NOTPARALLEL:
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Torch stands apart from the lock: its builds differ from machine to machine. A plain install
# brings the CUDA build on x86_64 Linux (gigabytes; it also runs without a GPU). For the small CPU
# build give pip's options too, with the address that pytorch.org shows for CPU:
#   make up TORCH="torch==2.13.0+cpu --extra-index-url ADDRESS"
TORCH ?= torch==2.13.0

PIP := $(BIN)/python -m pip --disable-pip-version-check
# For bench-gateway, demo and the like: make bench-gateway ARGS="--seconds 5"
ARGS ?=

.PHONY: help up demo test lint format bench-gateway bench-engine soak-engine proof-budget proof-archive proof-pool proof-reconcile replay nano lock clean

help: ## this text
	@echo 'Yuzui: one OpenAI-compatible address before your own GLM-4.6V workers and Volcano Engine Ark.'
	@echo
	@echo 'First time:  make up      then paste the curl line that it prints into another terminal.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-20s %s\n' "$$target" "$$text"; done
	@echo
	@echo 'Settings: yuzui.yaml in this folder, or YUZUI_* variables; a wrong one names itself.'
	@echo 'The tool: $(BIN)/yuzui (token, budget, report, explain, ...), once installed.'

up: $(STAMP) ## everything on this machine: books, one GLM worker, gateway (Ctrl-C drains)
	@exec $(BIN)/yuzui up $(ARGS)

demo: $(STAMP) ## the same with an emulated cloud, and a guided tour of ten requests
	@exec $(BIN)/yuzui demo $(ARGS)

test: $(STAMP) ## install what the tests need and run them: ruff, mypy, pytest
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## ruff and mypy only
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench-gateway: $(STAMP) ## what the gateway costs: a table, and one line of JSON at the end
	@exec $(BIN)/python -m tests.bench.gateway $(ARGS)

bench-engine: $(STAMP) ## the worker beside `transformers serve` and generate() (10 minutes; ARGS="--quick --only nano")
	@exec $(BIN)/python -m tests.bench.engine $(ARGS)

soak-engine: $(STAMP) ## 2,000 requests with random aborts: nothing is kept, every answer is checked
	@exec $(BIN)/python -m tests.bench.soak_engine $(ARGS)

proof-budget: $(STAMP) ## that no budget is overspent and no hold leaks (an hour; ARGS=--quick)
	@exec $(BIN)/python -m tests.proof.budget $(ARGS)

proof-reconcile: $(STAMP) ## a synthetic month against its bill, with one item in a hundred wrong
	@exec $(BIN)/python -m tests.bench.reconcile $(ARGS)

proof-pool: $(STAMP) ## that a killed or hanging worker takes no request with it (ARGS=--quick, --nano)
	@exec $(BIN)/python -m tests.proof.pool $(ARGS)

proof-archive: $(STAMP) ## that no ledger row is lost or doubled on its way to the archive (5 minutes)
	@exec $(BIN)/python -m tests.proof.archive $(ARGS)

replay: $(STAMP) ## a recorded trace through the whole gateway; the books' report of it, and the page for the CFO
	@exec $(BIN)/python -m tests.bench.replay $(ARGS)

nano: $(STAMP) ## train the shipped glm-4.6v-nano anew (about an hour on two cores; resumes)
	@exec $(BIN)/python -m backends.glm.nano.train $(ARGS)

clean: ## remove the virtual environment and caches; the books in .yuzui stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# ------------------------------------------------------------------ installing

# The stamp is written last: an install that was interrupted starts again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Yuzui needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'Python cannot make virtual environments here. On Debian or Ubuntu run:'; \
		echo '  sudo apt-get install python3-venv'; exit 1; }
	@echo 'Installing into $(VENV): locked packages, then $(TORCH) (a few minutes, once)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# ------------------------------------------------------------------ the locks

# One for this folder and two that are parts of it, for the images. Resolved anew only here.
LOCKER := build/locker
# Torch is resolved as installed here, and left out of what is written, with all that only it needs.
COMPILE := CUSTOM_COMPILE_COMMAND='make lock' $(LOCKER)/bin/pip-compile --quiet --generate-hashes \
	-c build/torch.txt --unsafe-package torch --strip-extras --no-annotate --no-emit-options --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host

lock: ## resolve the dependencies anew and write the three locks
	@test -x $(LOCKER)/bin/pip-compile || { $(PYTHON) -m venv $(LOCKER) && \
		$(LOCKER)/bin/python -m pip install --quiet 'pip-tools>=7.5'; }
	@echo '$(firstword $(TORCH))' > build/torch.txt
	$(COMPILE) --extra embedded --extra test pyproject.toml requirements.in -o requirements.lock
	@sed -n 's/^\([a-zA-Z0-9._-]*==[^ ]*\).*/\1/p' requirements.lock > build/versions.txt
	$(COMPILE) -c build/versions.txt --extra archive pyproject.toml deploy/gateway.in -o deploy/gateway.lock
	$(COMPILE) -c build/versions.txt pyproject.toml requirements.in -o deploy/worker.lock
	@sed -i '/^# WARNING: The following packages were not pinned/,$$d' requirements.lock deploy/*.lock
