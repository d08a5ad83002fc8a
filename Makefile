# make demo   prune a bundled network with bundled data and show the table (no PyTorch needed)
# make test   run the tests
# make lint   style, types and import contracts
# make clean  remove what these made

PYTHON ?= python3
VENV := .venv
BUILD := build

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGE := pyproject.toml README.md LICENSE $(shell find thinet_onnx -type f -not -name '*.pyc')

.PHONY: demo test lint clean
.NOTPARALLEL:

demo: $(VENV)/.package
	mkdir -p $(BUILD)
	$(BIN)/thinet-onnx prune models/fashion_resnet.onnx $(BUILD)/fashion_resnet_pruned.onnx \
		--data models/fashion_calibration.npz --test-data models/fashion_test.npz \
		--mean 0.2860 --std 0.3530 --target macs=50%

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(BUILD) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package as a user gets it; where the editable one is there already, that one, brought up to date.
$(VENV)/.package: $(PACKAGE) | $(BIN)/python
	$(PIP) install $(if $(wildcard $(VENV)/.dev),--editable) .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --editable '.[dev]' --constraint constraints.txt
	touch $@
