# `make test` is everything a change must pass; it makes its own environment.

PYTHON ?= python3
BIN = .venv/bin
DEMO = out/demo
METHODS = content style direct switch klora

.PHONY: test test-hosts test-a1111 test-forge lint types js unit live pictures bench gpu demo evaluation clean

# the types are checked beside the tests, so that two cores are enough for both
test: lint js
	@$(MAKE) --no-print-directory --jobs=2 types unit

# of tests: how many at a time, and no file's in two, as its tests share what takes long to make
WORKERS ?= auto
PYTEST = -m pytest --quiet --numprocesses=$(WORKERS) --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

# the same on the versions that the WebUIs pin; an environment of 5 GB each, as PyPI's torch for Linux brings CUDA with it
test-hosts: test-a1111 test-forge

.venv: .venv/installed

.venv/installed: requirements-test.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt
	touch $@

HOSTS_PYTHON ?= $(shell for p in python3.10 python3.11 $(PYTHON); do $$p -c "" >/dev/null 2>&1 && break; done; echo $$p)
HOSTS_TESTS = tests/rule tests/lora tests/map tests/export tests/engine tests/devices tests/hosts tests/webui tests/test_settings.py

.venv-a1111/installed .venv-forge/installed: .venv-%/installed: requirements-%.txt
	@$(HOSTS_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' || { echo "$< needs \
	Python 3.10 or 3.11, for which its torch is built; $(HOSTS_PYTHON) is not that: make test-$* HOSTS_PYTHON=path" >&2; exit 1; }
	$(HOSTS_PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --requirement $<
	touch $@

test-a1111 test-forge: test-%: .venv-%/installed
	.venv-$*/bin/python $(PYTEST) $(HOSTS_TESTS)

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

# javascript/ by TypeScript's checker, where Node and it are there; nothing is fetched for it
TSC ?= $(firstword $(wildcard $(KLORA_PLAYWRIGHT)/typescript/bin/tsc node_modules/typescript/bin/tsc))

js:
	@if ! command -v node >/dev/null; then echo "javascript/ is not checked: node is not installed"; \
	elif [ -z "$(TSC)" ]; then echo "javascript/ is not checked: no typescript in KLORA_PLAYWRIGHT, a folder node_modules, or here"; \
	else node "$(TSC)" --noEmit --allowJs --checkJs --strict --target es2022 --lib es2022,dom,dom.iterable --types "" \
	javascript/*.js; fi

# the tests' tensors, and the toy's, are too small to share among threads
unit test-a1111 test-forge live pictures demo evaluation: export OMP_NUM_THREADS = 1

unit: .venv/installed
	$(BIN)/python $(PYTEST) --ignore=tests/live

# needs an installed WebUI: see tests/live/kinds.py for the variables that say where it is
live: .venv/installed
	$(BIN)/python -m pytest tests/live

# the README's pictures; that of the panel needs AUTOMATIC1111 and a browser, by the variables of CONTRIBUTING.md
pictures: export KLORA_PICTURES ?= docs/pictures

pictures: .venv/installed
	$(BIN)/python -m klora_lib sheet $(KLORA_PICTURES)/fusion.jpg --pairs rocket:monotone octopus:lineart \
	--methods content style direct klora --across --no-truth --least 192
	$(BIN)/python -m pytest tests/live/browser/test_picture.py -k a1111

# with the variables of the live tests set, an image's times are in the table too
bench: .venv/installed
	$(BIN)/python -m tests.bench

# on a GPU, without a WebUI; `make gpu DEVICE=cpu GPU=--quick` tries the program out without one (docs/gpu.md)
DEVICE ?= cuda

gpu: .venv/installed
	$(BIN)/python -m tests.gpu --device $(DEVICE) $(GPU)

# the toy model draws one of its subjects in one of its styles: `make demo CONTENT=cat STYLE=cartoon`; `make demo UI=1` is a page
CONTENT = rocket
STYLE = monotone
TOY = --model toy --content $(CONTENT) --style $(STYLE) --out $(DEMO)

demo: .venv/installed
ifeq ($(UI),1)
	@$(BIN)/python -m klora_lib ui
else
	@$(BIN)/python -m klora_lib compare $(TOY) --count 6
	@$(BIN)/python -m klora_lib generate $(TOY)
	@$(BIN)/python -m klora_lib evaluate $(TOY) --methods $(METHODS) --count 6 --batch 6
	@echo "$(CONTENT) in the style $(STYLE), drawn by a small model trained on emoji; in $(CURDIR)/$(DEMO):"
	@echo "  the grid   $(CONTENT)_$(STYLE)_grid.png: content alone, style alone, both added, LoRA Switch, K-LoRA, six seeds each"
	@echo "  the map    $(CONTENT)_$(STYLE)_klora_0_map.png: K-LoRA's choice, layers down, steps across, content blue, style green"
	@echo "  the table  evaluation.md, above: the judge's scores of the same pictures, in percent"
endif

# measures the tables of docs/evaluation.md anew; two hours on one core
evaluation: .venv/installed
	$(BIN)/python -m klora_lib report docs/evaluation.md --csv out/evaluation.csv
	$(BIN)/python -m klora_lib sheet docs/pictures/methods.jpg

clean:
	rm -rf .venv .venv-a1111 .venv-forge .pytest_cache .mypy_cache .ruff_cache .hypothesis out build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
