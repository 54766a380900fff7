# `make test` is everything a change must pass; it makes its own environment.

PYTHON ?= python3
BIN = .venv/bin
DEMO = out/demo

.PHONY: test lint types unit live bench demo clean

test: lint types unit

.venv: .venv/installed

.venv/installed: requirements-test.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

# the tests' tensors are too small to share among threads
unit live: export OMP_NUM_THREADS = 1

unit: .venv/installed
	$(BIN)/python -m pytest --quiet --ignore=tests/live

# needs an installed WebUI: see tests/live/kinds.py for the variables that say where it is
live: .venv/installed
	$(BIN)/python -m pytest tests/live

# with the variables of the live tests set, an image's times are in the table too
bench: .venv/installed
	$(BIN)/python -m tests.bench

demo: .venv/installed
	@mkdir -p $(DEMO)
	@$(BIN)/python -m tests.make_pair $(DEMO)/subject.safetensors $(DEMO)/style.safetensors
	@$(BIN)/python -m klora_lib plan $(DEMO)/subject.safetensors $(DEMO)/style.safetensors --json $(DEMO)/plan.json
	@$(BIN)/python -m klora_lib plot $(DEMO)/subject.safetensors $(DEMO)/style.safetensors --out $(DEMO)/plan.png
	@echo "A random pair of LoRAs, shaped like SDXL's attention but small, and the choice K-LoRA makes between them:"
	@echo "  the pair   $(CURDIR)/$(DEMO)/subject.safetensors, style.safetensors"
	@echo "  the plan   $(CURDIR)/$(DEMO)/plan.json"
	@echo "  the map    $(CURDIR)/$(DEMO)/plan.png (layers down, steps across; content blue, style green)"
	@echo "No image model is involved yet: this is the whole decision, made from the two files alone."

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis out build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
