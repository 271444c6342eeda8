# One command each: an environment of its own, then the demonstration or the tests.
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test test-all lint
demo: $(VENV)/installed
	$(VENV)/bin/python -m sesemi.demo

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

test-all: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -m "slow or not slow"

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .

$(VENV)/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	touch $@
