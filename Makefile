# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test interop interop-table sim sim-mutants torture check lint setup zookeeper lock clean
.DELETE_ON_ERROR:

demo: $(READY) ## three bookies on this machine: write, lose one, change ensemble, fence, recover, verify
	$(BIN)/bkctl demo

test: $(READY) zookeeper ## everything that must hold, fast tests first
	$(BIN)/python -m pytest -q

interop: $(READY) ## against the released Apache BookKeeper; needs a JDK and Maven
	$(BIN)/python -m pytest -q tests/interop

interop-table: $(READY) ## docs/interop.md from the newest release and the one before it
	$(BIN)/python -m pytest -q tests/interop
	BKCTL_INTEROP_PROFILE=previous $(BIN)/python -m pytest -q tests/interop
	$(BIN)/python -m tests.interop.matrix > docs/interop.md

sim: $(READY) ## the replication protocol in a hostile world: SEEDS=first:end MODE=a|b|c
	$(BIN)/python -m tests.sim --mode $(or $(MODE),a) --seeds $(or $(SEEDS),0:100000)

sim-mutants: $(READY) ## known defects, put back on purpose: each must be found
	$(BIN)/python -m tests.sim --mutants
	$(BIN)/python -m pytest -q tests/sim -k "finds_its_defect or known_defect"

check: $(READY) ## format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow and not zookeeper"

torture: $(READY) zookeeper ## the long ones: 50 crashes of a whole cluster, a million entries
	BKCTL_CRASH_ROUNDS=50 BKCTL_ROUND_TRIP_ENTRIES=1000000 \
	  $(BIN)/python -m pytest -q -s tests/integration/test_crashes.py tests/integration/test_round_trip.py

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "bkctl needs Python 3.11 or newer; name it with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tests/install-debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q bkctl # commands start a quarter faster, also where nobody may write bytecode
	@touch $@

zookeeper: # the conformance tests run against a real server
	@test -e /usr/share/java/zookeeper.jar || tests/install-debian.sh zookeeper

lock: $(READY) ## pin the newest versions that pyproject.toml allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
