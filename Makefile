VENV ?= .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif

.PHONY: demo demo-full test install

# Zero-shot CLIP and MaPLe, base to novel, on the embedded dataset and backbone.
demo: install
	$(BIN)/python -m scripts.sweep base2new --datasets shapes --trainers ZeroshotCLIP MaPLe --seeds 1

demo-full: install
	$(BIN)/python -m scripts.sweep base2new --datasets shapes

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[experiments]"
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/installed
