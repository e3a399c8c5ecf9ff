# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STATE := .fastflow/engine
# While it is held no other target stops an engine that was started from here.
USING_ENGINE := mkdir -p $(STATE) && flock -s -o $(STATE)/in-use

.PHONY: help demo up test test-hosts bench soak chaos lint types format engine image postgres clean

help: ## Lists these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | column -t -s $$'\t'

demo: $(INSTALLED) ## Sets everything up, runs the example pipelines, and cleans up
	@$(BIN)/python deploy/demo/demo.py

up: $(INSTALLED) ## Runs a control plane and an agent on the example pipelines, until Ctrl-C
	@$(BIN)/python deploy/demo/demo.py --up

# The slowest go first: the last ones to end are short then, and keep both workers busy.
test: $(INSTALLED) engine image postgres ## All tests but those of the host lab
	@$(USING_ENGINE) $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
	  tests/crash tests/docker tests/upgrade tests/integration tests/contract tests/unit; \
	  code=$$?; deploy/engine/engine stop $(STATE); exit $$code

test-hosts: $(INSTALLED) engine image ## Tests on virtual worker hosts with cgroup v2 (root, a few minutes)
	@$(USING_ENGINE) $(BIN)/python -m pytest tests/hosts; code=$$?; deploy/engine/engine stop $(STATE); exit $$code

bench: $(INSTALLED) engine image ## Measures; writes build/bench.json
	@$(USING_ENGINE) $(BIN)/python -m tests.bench; code=$$?; deploy/engine/engine stop $(STATE); exit $$code

chaos: MINUTES ?= 10
chaos: SEED ?=
chaos: $(INSTALLED) engine image ## Kills, cuts and drains while runs are made, and checks that nothing is lost; MINUTES= SEED=
	@$(USING_ENGINE) $(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)); \
	  code=$$?; deploy/engine/engine stop $(STATE); exit $$code

soak: RUNS ?= 10000
soak: RECONNECTS ?= 1000
soak: MINUTES ?= 120
soak: RUNTIME ?= process
soak: $(INSTALLED) ## Many runs and reconnects, nothing that grows; RUNS= RECONNECTS= MINUTES= RUNTIME=process|docker
	@$(BIN)/python -m tests.soak --runs $(RUNS) --reconnects $(RECONNECTS) --minutes $(MINUTES) --runtime $(RUNTIME)

lint: $(INSTALLED) ## Style of code and protocol
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf breaking proto --against tests/upgrade/previous/proto

types: $(INSTALLED) ## Types, strict
	$(BIN)/mypy

format: $(INSTALLED) ## Formats the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

engine: ## Makes sure a Docker engine runs
	@deploy/engine/engine ensure $(STATE)

image: $(INSTALLED) engine ## Makes sure the runner image is there
	@$(BIN)/python deploy/runner/build

postgres: ## Makes sure PostgreSQL is installed, for the tests
	@deploy/postgres/install

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py $(shell find proto -name '*.proto')
	@deploy/install $(VENV)
	@touch $@

clean: ## Removes the virtual environment, generated stubs and local data
	rm -rf $(VENV) build dist .fastflow
	find clients -name '*_pb2*.py*' -delete
