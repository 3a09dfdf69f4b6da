VENV ?= .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif

.PHONY: demo demo-full test test-install mutations kills install

# Zero-shot CLIP and MaPLe, base to novel, on the embedded dataset and backbone.
demo: install
	@echo "Zero-shot CLIP and MaPLe on Shapes, 48 classes of drawings, with a tiny CLIP that has never seen them."
	@echo "MaPLe learns prompts from 16 images of each of 24 base classes; both are tested on these and on 24 new"
	@echo "classes, apart and together. Six runs, each seconds to minutes. Ctrl-C at any time: make demo goes on from there."
	$(BIN)/python -m scripts.sweep base2new --datasets shapes --trainers ZeroshotCLIP MaPLe --seeds 1
	@echo "These drawings need little: on photographs, MaPLe's gains are smaller (docs/embedded_default.md)."
	@echo "Next: your own photos (docs/own_data.md), a table of the paper (docs/sweeps.md),"
	@echo "a method of your own (docs/add_a_trainer.md), all methods on Shapes (make demo-full)."

# All methods, three seeds: base to novel, and what belongs to its classes (heads) on all classes. Some hours on two cores.
HEADS = ZSLinearProbe CLAP LPPlusPlus LPPlusPlus-published TaskRes TaskRes-one CLIPAdapter \
	TipAdapter TipAdapter-one TipAdapter-F TipAdapter-F-one
demo-full: install
	$(BIN)/python -m scripts.sweep base2new --datasets shapes
	$(BIN)/python -m scripts.sweep few_shot --datasets shapes --shots 16 \
		--trainers ZeroshotCLIP MaPLe CLIPLoRA $(HEADS)

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# What clumsy or hostile hands make of files, and kills at any operation: as many as one likes.
mutations: $(VENV)/installed-dev
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m mutations --cases $(or $(CASES),3000)

kills: $(VENV)/installed-dev
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m mutations.kills --kills $(or $(KILLS),100)

# The wheel in a fresh environment, beside OpenAI's clip and Hugging Face's datasets. Needs the package index.
test-install: $(VENV)/installed-dev
	$(BIN)/python tests/install.py

install: $(VENV)/installed

# A PyTorch that is in the environment already is kept: make demo VENV=/path/to/environment
$(VENV)/installed: pyproject.toml
	@echo "Installing into $(VENV). With PyTorch's default build for Linux this takes minutes and 6 GB of disk;"
	@echo "with its CPU build it is less: docs/installing.md."
	$(BIN)/python --version || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[experiments]"
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(BIN)/python --version || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/installed
