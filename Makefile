# decentllm: `make demo` tries it, `make test` tests it, `make check` is what a contributor runs before a commit.
# Settings: PYTHON, VENV, MODELS (folder of the demo models), TORCH_ARGS (extra words for `pip install torch`, such as
# an index with smaller CPU builds), MODEL and ASK for the demo.

PYTHON ?= python3
VENV ?= .venv
MODELS ?= models
TORCH_ARGS ?=
MODEL ?= qwen2.5-coder-0.5b
ASK ?=
PORT ?= 0

RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
# A virtual screen where there is Xvfb, so that clicks are real ones.
SCREEN = $(if $(shell command -v xvfb-run),xvfb-run -a -s "-screen 0 1280x800x24" env QT_QPA_PLATFORM=xcb,env QT_QPA_PLATFORM=offscreen)
PYTEST = DECENTLLM_TEST_MODELS="$(abspath $(MODELS))" $(SCREEN) $(RUN) -m pytest

# A folder with torch's wheel for the package test, where the public index has none for this machine or is out of reach.
FIND_LINKS ?=

.PHONY: demo test check lint types contracts web web-test system models-for-tests benchmark benchmark-volunteer \
  benchmark-scheduling benchmark-claims benchmark-endurance recovery soak simulate-faults simulate-mutants \
  screenshots package package-test locks clean

demo: $(VENV)/.demo
	@$(RUN) -m demo.run --model "$(MODEL)" --models "$(MODELS)" --port "$(PORT)" --ask "$(ASK)"

test: $(VENV)/.dev system models-for-tests
	$(PYTEST) $(PYTEST_ARGS)

# By the tests that look at the chat page and at the window; the pictures are for the README.
screenshots: $(VENV)/.dev system models-for-tests
	DECENTLLM_SCREENSHOTS="$(abspath assets/screenshots)" $(PYTEST) \
	  tests/integration/test_chat_page.py tests/integration/test_operator_page.py tests/integration/test_tray_app.py

# Histories of a pool on virtual time with faults by seed: so many from FIRST on. `$(RUN) -m tests.simulation --seed N`
# tells one of them. simulate-mutants plants bugs that histories must find.
SEEDS ?= 10000
FIRST ?= 0
simulate-faults: $(VENV)/.dev
	$(RUN) -m tests.simulation --seeds "$(SEEDS)" --first "$(FIRST)"

simulate-mutants: $(VENV)/.dev
	$(RUN) -m tests.simulation --mutants

check: $(VENV)/.dev lint types contracts test

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

contracts: $(VENV)/.dev
	$(VENV)/bin/lint-imports --no-cache

web:
	cd coordinator/web && npm ci --no-audit --no-fund && npm run build

web-test:
	cd coordinator/web && npm ci --no-audit --no-fund && npm test

system:
	@$(PYTHON) installer/linux/system_packages.py

models-for-tests: $(VENV)/.dev
	@$(RUN) -m demo.models_for_tests --models "$(MODELS)"

benchmark: $(VENV)/.dev models-for-tests
	$(RUN) -m benchmarks.overhead --models "$(MODELS)" --write

# What the volunteer's machine feels; benchmarks/pause.py wants an NVIDIA GPU and is not among them.
benchmark-volunteer: $(VENV)/.dev models-for-tests system
	$(SCREEN) $(RUN) -m benchmarks.idle_cost --models "$(MODELS)" --write
	$(RUN) -m benchmarks.pause_streams --models "$(MODELS)" --write
	$(RUN) installer/build.py app
	$(RUN) -m benchmarks.first_start --models "$(MODELS)" --find-links "$(FIND_LINKS)" --write

# The scheduler against other systems' in the simulator, its distance from the optimum, what changes cost, its own time
# (an hour or more; what is in $(SCHEDULING) already is not run again).
SCHEDULING ?= build/scheduling
benchmark-scheduling: $(VENV)/.dev
	mkdir -p "$(SCHEDULING)"
	$(RUN) -m benchmarks.scheduling.compare --out "$(SCHEDULING)"
	$(RUN) -m benchmarks.scheduling.pictures "$(SCHEDULING)" --out docs/scheduling
	$(RUN) -m benchmarks.scheduling.optimum --num 100 > "$(SCHEDULING)/optimum.txt"
	$(RUN) -m benchmarks.scheduling.changes > "$(SCHEDULING)/changes.txt"
	$(RUN) -m benchmarks.scheduling.speed > "$(SCHEDULING)/speed.txt"
	$(RUN) -m benchmarks.scheduling.report "$(SCHEDULING)" --optimum "$(SCHEDULING)/optimum.txt" \
	  --changes "$(SCHEDULING)/changes.txt" --speed "$(SCHEDULING)/speed.txt" --write

# The summary's sentences with real processes in an emulated network (root, /dev/net/tun; an idle machine).
benchmark-claims: $(VENV)/.dev
	$(RUN) -m benchmarks.claims calibration two-phases low-bandwidth degrade balance elasticity cost
	$(RUN) -m benchmarks.claims page

# What faults cost, with real processes and a real model (root and /dev/net/tun for the rows `network-...`).
recovery: $(VENV)/.dev models-for-tests
	$(RUN) -m benchmarks.recovery kill hang prefix pause restart network-lan network-80ms network-200ms page \
	  --models "$(MODELS)"

# One fault a second on a pool of real processes, while every answer is compared.
MINUTES ?= 30
soak: $(VENV)/.dev
	$(RUN) -m benchmarks.endurance soak --minutes "$(MINUTES)"

# The same, a coordinator that is killed 200 times, 500 streams and 5,000 nodes (an hour and a half; files: ulimit -n).
benchmark-endurance: soak
	$(RUN) -m benchmarks.endurance kills
	$(RUN) -m benchmarks.endurance streams
	$(RUN) -m benchmarks.endurance nodes
	$(RUN) -m benchmarks.endurance page

# The .deb in dist/; package-test tries it on a fresh Debian (root, mmdebstrap).
package: $(VENV)/.dev
	$(RUN) installer/build.py deb

package-test: package models-for-tests system
	$(RUN) installer/linux/try_package.py dist/decentllm_*_amd64.deb --models "$(MODELS)" --find-links "$(FIND_LINKS)"

locks: $(VENV)/.dev
	$(RUN) installer/make_locks.py --find-links "$(FIND_LINKS)"

clean:
	rm -rf var build dist .pytest_cache .mypy_cache .ruff_cache

# torch first and by itself: what is resolved together with it must not pull a second, larger build.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Installing torch (the largest download)."
	$(PIP) install $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e ".[client,coordinator,convert]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.demo
