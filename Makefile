# `make demo` and `make test` do all of their own set-up in .venv; a second call goes straight to the work.
#
# Variables:  PYTHON=python3.12      the interpreter that .venv is made with (3.11 or newer)
#             TORCH_ARGS="..."       more arguments for the torch install alone, such as the index of a CPU or CUDA build
#             PROMPT="..." SEED=2    what `make demo` shows

PYTHON     ?= $(shell command -v python3.11 || command -v python3)
VENV       ?= .venv
BIN        := $(VENV)/bin
PIP        := $(BIN)/python -m pip --disable-pip-version-check
TORCH_ARGS ?=
PROMPT     ?= a red ball rolls left over a green floor
SEED       ?= 1
TESTS      ?= tests

.PHONY: demo app test lint format comfyui install clean

demo: $(VENV)/.installed
	$(BIN)/pab generate "$(PROMPT)" --model demo --policy pab246 --seed $(SEED) --force -o demo.mp4
	@echo "The video: $(CURDIR)/demo.mp4"

app: $(VENV)/.installed-app
	$(BIN)/pab app

test: lint
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The real ComfyUI that tests/host starts, in a cache folder outside the tree (PAB_CACHE); `make test` makes it by itself too.
comfyui: $(VENV)/.installed-dev
	$(BIN)/python tests/host/provision.py

install: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) demo.mp4

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("This needs Python 3.11 or newer; say which with: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# torch goes first and alone: asked for together with a range, it can come as another, much larger build.
$(VENV)/.torch: $(VENV)/.made
	$(PIP) install --quiet --constraint tests/constraints.txt $(TORCH_ARGS) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml tests/constraints.txt
	$(PIP) install --quiet --constraint tests/constraints.txt --editable .
	@touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	$(PIP) install --quiet --constraint tests/constraints.txt --editable ".[app]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint tests/constraints.txt --editable ".[dev]"
	@touch $@
