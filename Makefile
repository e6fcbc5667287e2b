# All tasks of developers and of CI. They need Python 3.11 or newer, and install the rest.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start hundreds of Python processes. Without cached bytecode, each would compile the bridge.
unexport PYTHONDONTWRITEBYTECODE

# The name contains the version of Python. Another version, or a change of the locked packages, creates .venv again.
READY := .venv/.ready-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null)
# The environment of pip-audit.
AUDIT := .venv/audit/.ready
# Client libraries for the tests.
LIBRARIES := .venv/libraries/.ready
# matplotlib for the pictures of the benchmark.
PLOTS := .venv/plots/.ready
# mutmut and its dependencies. mutmut runs the tests with the packages of .venv.
MUTANTS := .venv/mutants/.ready
# The bridge as users install it, without the packages of the tests, so that the benchmark measures what users run.
SHIPPED := .venv/shipped/.ready
TOO_OLD := $(PYTHON) is Python %d.%d, but 3.11 or newer is needed: PYTHON=python3.12 make setup uses another

# Only the default index, whatever the configuration of this machine: the hashes must be right for all users.
COMPILE = env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
  $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-annotate \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(FLAGS)

.PHONY: help setup prepare demo test test-quick test-all test-rest test-releases soak bench curves lint style types unit unit-first unit-second format contract readme picture lock audit mutants clean

help:
	@echo 'make setup       prepare .venv, with the command edk-bridge in it'
	@echo 'make prepare     install the tools of the tests, with apt; all targets of tests except test-quick do this first'
	@echo 'make demo        run a broker, the bridge and a source of killmails, until Ctrl-C (FLAGS="--port 3001")'
	@echo 'make test        style, types, and all tests except those marked slow or alone, with a real RabbitMQ'
	@echo 'make test-quick  style, types, the unit tests and the vectors, in a minute'
	@echo 'make test-all    all tests, with branch coverage (WORKERS=5 SLOW_WORKERS=4 with four cores)'
	@echo 'make test-releases  the tests on several releases of RabbitMQ and Python, as a table (FLAGS="--only 4.3 --part")'
	@echo 'make soak        ten minutes with all kinds of faults at the same time (FLAGS="--minutes 1")'
	@echo 'make bench       compare the cost of an update with other programs (FLAGS="paced --quick"); all takes half an hour'
	@echo '                 FLAGS=guard compares ratios with the committed ones, in three minutes'
	@echo 'make curves      draw the pictures of the benchmark anew, from their committed points'
	@echo 'make mutants     mutation testing of changed modules: list surviving mutants (FLAGS="bridge/broadcast/resume.py")'
	@echo 'make lint        style, spelling, types, and changes of the schema files that break users'
	@echo 'make format      fix the style of the code'
	@echo 'make contract    regenerate schemas/generated from the schema files'
	@echo 'make readme      regenerate the tables in the README files'
	@echo 'make picture     take the pictures of the live page in README.md anew, which takes 5 minutes'
	@echo 'make lock        regenerate the lock files (FLAGS=--upgrade takes the newest versions)'
	@echo 'make audit       look for known vulnerabilities of the locked packages (FLAGS="-s osv" asks OSV)'
	@echo 'make clean       remove all generated files'
	@echo 'PYTHON=python3.12 make ...  uses another Python'

setup: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) is missing: PYTHON=python3.12 make setup uses another'; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "$(TOO_OLD)" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(PYTHON) -P tests/support/broker/apt.py \
	  "$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
	@echo 'making .venv'
	@$(PYTHON) -m venv --clear .venv
	@echo 'installing the locked packages (about a minute)'
	@$(BIN)/pip install -qq --require-hashes --no-deps -r requirements-dev.lock
	@$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
	@echo 'ready: $(BIN)/edk-bridge'

demo: $(READY)
	@$(BIN)/python -m tests.support.broker.demo $(FLAGS)

# tests/README.md describes the tiers.
# make runs a line with $(MAKE) itself even with --dry-run, and would start the broker.
SUBMAKE := $(MAKE)
# On two cores, three workers are faster than two, which leave a fifth of the time unused. TEST_AMQP_URL names a single
# virtual host, which workers can't share.
WORKERS ?= $(if $(TEST_AMQP_URL),1,3)
# The slow tests keep two cores busy.
SLOW_WORKERS ?= $(if $(TEST_AMQP_URL),1,2)
# THOROUGH=1 runs all examples of the property-based tests, and measures branch coverage.
THOROUGH ?=
ifdef THOROUGH
export TEST_THOROUGH := 1
# Each half of the unit tests writes its own file of coverage data.
COVER = COVERAGE_FILE=.coverage.$@
UNIT := --cov --cov-config=tests/unit/.coveragerc --cov-report= --cov-fail-under=0
VECTORS :=
OTHERS := --ignore=tests/unit
else
COVER :=
UNIT :=
# The quick tests include the vectors.
VECTORS := tests/conformance/test_vectors.py
OTHERS := --ignore=tests/unit --ignore=$(VECTORS)
endif
WITH_BROKER := $(BIN)/python -m tests.support.broker --hosts=$(WORKERS)
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS)

test: prepare test-quick
	$(WITH_BROKER) $(PYTEST) $(OTHERS) --dist=loadfile -m 'not slow and not alone'

# Types and two halves of the unit tests run at the same time. xdist would collect all tests in each worker, which takes
# a third longer.
test-quick: style
	@echo 'checking types and running unit tests (about a minute)'
	$(if $(THOROUGH),@rm -f .coverage .coverage.*)
	@$(MAKE) --no-print-directory --jobs=3 --output-sync types unit-first unit-second
	$(if $(THOROUGH),@$(UNIT_COVERAGE))

unit: $(READY)
	$(if $(THOROUGH),@rm -f .coverage .coverage.*)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync VECTORS= unit-first unit-second
	$(if $(THOROUGH),@$(UNIT_COVERAGE))

# tests/unit/.coveragerc lists the pure modules, which the unit tests alone must cover in full.
UNIT_COVERAGE = $(BIN)/coverage combine --quiet .coverage.unit-first .coverage.unit-second && \
  $(BIN)/coverage report --rcfile=tests/unit/.coveragerc

FIRST := tests/unit/contract tests/unit/broadcast tests/unit/config tests/unit/amqp
unit-first: $(READY)
	@$(COVER) $(BIN)/pytest --quiet $(FIRST) $(VECTORS) $(UNIT)

unit-second: $(READY)
	@$(COVER) $(BIN)/pytest --quiet tests/unit $(addprefix --ignore=,$(FIRST)) $(UNIT)

test-all: prepare
	$(WITH_BROKER) $(SUBMAKE) --jobs=1 THOROUGH=1 test test-rest

# The tests marked slow or alone. After all tests, the coverage of the unit tests and of the commands is combined.
test-rest: prepare
	$(WITH_BROKER) $(BIN)/pytest --numprocesses=$(SLOW_WORKERS) $(OTHERS) --dist=loadfile -m 'slow and not alone'
	$(WITH_BROKER) $(BIN)/pytest $(OTHERS) -m alone
	$(if $(THOROUGH),$(BIN)/coverage combine --append --quiet && $(BIN)/coverage report --fail-under=95)

test-releases: prepare
	$(BIN)/python -m tests.support.releases $(FLAGS)

prepare: $(READY)
	@$(BIN)/python -m tests.support.prepare

soak: $(READY)
	@$(BIN)/python -m tests.soak $(FLAGS)

bench: $(READY) $(SHIPPED) $(if $(findstring curves,$(FLAGS)),$(PLOTS))
	@$(BIN)/python -m tests.bench $(FLAGS)

curves: $(READY) $(PLOTS)
	@.venv/plots/bin/python -m tests.bench.curves.picture

$(SHIPPED): requirements.lock pyproject.toml $(shell find bridge schemas -type f -not -name '*.pyc')
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m hatchling build --target wheel --directory $(@D) >/dev/null 2>&1
	@$(@D)/bin/pip install -qq --no-deps --no-index $(@D)/*.whl
	@touch $@

lint: style types

# .pre-commit-config.yaml has the commands of `style` and `types` as hooks.
style: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/typos
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml \
	  .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/python -m tests.support.released_contract

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

contract: $(READY)
	$(BIN)/python -m tests.support.generated contract

readme: $(READY)
	$(BIN)/python -m tests.support.generated readme

picture: $(READY)
	$(BIN)/python -m tests.support.picture

lock: $(READY)
	$(COMPILE) pyproject.toml --output-file requirements.lock
	echo '-e .' | $(COMPILE) - --group dev --no-emit-package edk-bridge --constraint requirements.lock \
	  --output-file requirements-dev.lock
	: | $(COMPILE) - --group build --constraint requirements-dev.lock --output-file requirements-build.lock
	: | $(COMPILE) - --group audit --constraint requirements-dev.lock --output-file requirements-audit.lock
	: | $(COMPILE) - --group libraries --constraint requirements-dev.lock --output-file requirements-libraries.lock
	: | $(COMPILE) - --group plots --constraint requirements-dev.lock --output-file requirements-plots.lock
	: | $(COMPILE) - --group mutants --constraint requirements-dev.lock --constraint requirements-audit.lock \
	  --output-file requirements-mutants.lock
	@! grep -nE '://|/(home|opt|root|tmp|usr|var)/' requirements*.lock

audit: $(READY) $(AUDIT)
	@$(BIN)/python -m tests.support.audit $(FLAGS)

$(AUDIT): requirements-audit.lock
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --require-hashes --no-deps -r requirements-audit.lock
	@touch $@

$(LIBRARIES): requirements-libraries.lock
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --require-hashes --no-deps -r requirements-libraries.lock
	@touch $@

$(PLOTS): requirements-plots.lock
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install -qq --require-hashes --no-deps -r requirements-plots.lock
	@touch $@

mutants: $(READY) $(MUTANTS)
	@$(BIN)/python -m tests.support.mutants $(FLAGS)

$(MUTANTS): requirements-mutants.lock
	@rm -rf $(@D)
	@$(BIN)/pip install -qq --require-hashes --no-deps --target $(@D) -r requirements-mutants.lock
	@touch $@

clean:
	rm -rf .venv .bench build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  tests/node/node_modules tests/bench/node/node_modules
	find bridge tests -name __pycache__ -type d -prune -exec rm -rf {} +
