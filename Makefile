# make demo   run the loop on the built-in world and write its report
# make test   run the tests
# make check  lint, format and types
# make bench  every comparison of speed and memory, into docs/speed.md (hours); bench-small prints the smallest (minutes)
# Each makes the environment it needs in .venv, with the versions of requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: demo test check bench bench-small growth clean

demo: .venv/installed
	$(BIN)/selfjudge demo --controls

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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

clean:
	rm -rf .venv demo build
