# The one entrance. Every target does its own set-up, in .venv, from the locks; a second run starts at once.
# PYTHON=/path/to/python3.12 picks the interpreter for a new .venv.

VENV := .venv
BIN := $(VENV)/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test chaos chaos-teeth mutants record bench bench-quick overload memory consume figures fuzz matrix restarts security example first-adapter types audit secrets sbom lint format lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## show both endpoints at work with each engine, nothing needed but this checkout
	$(BIN)/python -m mapper demo

test: $(VENV)/.dev ## run the tests; ARGS="-k money" passes options to pytest
	$(BIN)/pytest $(ARGS)

chaos: $(VENV)/.dev ## kill, pause and fill the disk of two replicas under load: long; ARGS="--engine talon_one --profile ci --seed 7"
	$(BIN)/python -m chaos $(ARGS)

chaos-teeth: $(VENV)/.dev ## take one protection after the other away, and see that each run fails for it
	$(BIN)/python -m chaos --teeth --profile ci $(ARGS)

mutants: $(VENV)/.tools ## break the core in small ways and see whether the tests notice: long; AREA=orders ARGS="--sample 100 --seed 1"
	nice $(BIN)/python -m chaos.mutants $(if $(AREA),--area $(AREA)) $(ARGS)

bench: $(VENV)/.bench ## measure the service beside what it is compared with, and write docs/performance.md: long
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.bench ## the same in a minute, on the screen alone
	$(BIN)/python -m bench --quick $(ARGS)

overload: $(VENV)/.bench ## send two and five times what the service can answer, and let the engine hang; ARGS=--quick
	$(BIN)/python -m bench.overload $(ARGS)

memory: $(VENV)/.bench ## watch what the service holds, under ten minutes of load; ARGS="--seconds 60 --warm 20"
	$(BIN)/python -m bench.memory $(ARGS)

consume: $(VENV)/.bench $(VENV)/.dev ## measure what redeeming once costs, on SQLite and on PostgreSQL; ARGS="--rounds 2"
	$(BIN)/python -m bench.consume $(ARGS)

figures: ## measure everything that docs/performance.md says: most of an hour, on a quiet machine
	$(MAKE) bench overload memory consume

record: $(VENV)/.dev ## record cassettes from a real account; cassettes/README.md says how
	$(BIN)/python -m tests.adapters.record

matrix: $(VENV)/.dev ## let processes die at every point, on both stores in full: docs/exactly_once.md
	CRASH_MATRIX=all $(BIN)/pytest tests/orders/test_crash_matrix.py $(ARGS)
	CRASH_MATRIX=all $(BIN)/pytest tests/conformance/test_builtin.py -k service_redeems_once $(ARGS)

restarts: $(VENV)/.dev ## attack the server by hand and restart it under load, at length
	RESTARTS=16 ATTACKS=50000 $(BIN)/pytest tests/http/test_server.py $(ARGS)

fuzz: $(VENV)/.dev ## throw 100,000 bodies at the service; ARGS="--count 2000000 --seed 1"
	$(BIN)/python -m tests.fuzz $(ARGS)

security: $(VENV)/.tools ## run the security checks, by id: docs/security.md
	$(BIN)/python -m tests.security

example: ## a third engine, django-oscar, with all standard tests and a real shop: examples/oscar, in a .venv of its own
	$(MAKE) -C examples/oscar test

first-adapter: $(VENV)/.tools ## write an adapter from an empty folder as a stranger does, against the clock
	scripts/first_adapter.sh

types: $(VENV)/.tools ## see that mypy and pyright find the mapper's types, from its wheel and from an editable install
	scripts/types.sh

audit: $(VENV)/.tools ## look the locked packages up among known faults; needs the network
	scripts/audit.sh

secrets: $(VENV)/.tools ## look for secrets in the checkout that are not in .secrets.baseline
	git ls-files -z | grep -zv '^requirements' | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline

sbom: $(VENV)/.tools ## write build/sbom.json (CycloneDX) from the lock, and compare the two
	mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json
	$(BIN)/python -m tests.security.sbom requirements.txt build/sbom.json

lint: $(VENV)/.tools ## judge style, types and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/hadolint Dockerfile mapper/commands/scaffold/Dockerfile

format: $(VENV)/.tools ## lay the code out as lint wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.tools ## pin all dependencies anew from pyproject.toml; UPGRADE=1 takes newer versions
	scripts/lock.sh $(if $(UPGRADE),--upgrade)

clean: ## remove .venv and all caches
	rm -rf $(VENV) *.egg-info build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per lock. A stamp is older than its lock once the lock has changed, and then everything is installed again.
SETUP := scripts/setup.sh pyproject.toml

$(VENV)/.runtime: requirements.txt $(SETUP)
	@scripts/setup.sh requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(SETUP)
	@scripts/setup.sh requirements-dev.txt
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: requirements-bench.txt $(SETUP)
	@scripts/setup.sh requirements-bench.txt
	@touch $@ $(VENV)/.runtime

$(VENV)/.tools: requirements-dev.txt requirements-tools.txt requirements-bench.txt $(SETUP)
	@scripts/setup.sh requirements-dev.txt requirements-tools.txt requirements-bench.txt
	@touch $@ $(VENV)/.bench $(VENV)/.dev $(VENV)/.runtime
