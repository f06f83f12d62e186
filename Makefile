# make quickstart   fresh clone → .venv → dataset → pretrain → fine-tune → text
# make test         fresh clone → .venv → the whole test suite, in a process per core
# make test-bfloat16  what `auto` changes, as on a processor that computes in bfloat16
# make slow         tests that are long by nature (make test runs a short version of each)
# make faults       all twenty kinds of faults, injected: kills, disks that fail or are full, crashes,
#                   hostile files, ranks that are lost, two hosts (as root), a server's bad clients
# make fuzz         ten times as many hostile files as make test tries, other ones each time, or
#                   FUZZ_TIMES=100 make fuzz
# make lint         style and types
# make parallel     every layout of several processes with every kind of run, against one process
# make interop      exports run by llama.cpp, built for it in a few minutes; published tokenizers
# make bench        every benchmark; results go to benchmarks/results/
# make gpu          on a machine with a GPU: checks, then measurements; goes on where it was cut off

PYTHON ?= python3
PY := .venv/bin/python
# Python keeps bytecode of what it imports, when it first does; to compile all of torch, as pip would,
# takes a minute, and to keep none, as some environments ask for, costs every process seconds.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(PY) -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt

PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: quickstart test test-bfloat16 slow faults fuzz parallel interop lint bench gpu clean

quickstart: .venv/installed
	@echo "== 1 of 5: tokenize the Python library =="
	$(PY) data/prepare.py configs/data/stdlib.yaml
	@echo "== 2 of 5: pretrain (about 4 minutes) =="
	$(PY) train.py configs/quickstart.yaml
	@echo "== 3 of 5: fine-tune: signature to docstring (about 1 minute) =="
	$(PY) data/tasks/docstrings.py
	$(PY) finetune.py configs/quickstart-docstrings.yaml
	@echo "== 4 of 5: what the model learned, against compressors =="
	$(PY) benchmarks/quickstart.py
	@echo "== 5 of 5: text =="
	$(PY) sample.py runs/quickstart --prompt-file configs/quickstart-prompt.txt --max-new-tokens 150 --temperature 0.7 --top-p 0.9 --seed 1
	$(PY) sample.py runs/quickstart-docstrings --prompt-file configs/quickstart-signature.txt --max-new-tokens 40 --temperature 0
	@echo "== what came of it, to look at in a browser =="
	$(PY) -m gpt report runs/quickstart

test: .venv/installed-dev build/axe-core
	$(PYTEST)

test-bfloat16: .venv/installed-dev
	$(PYTEST) -m auto --as-if-bfloat16

slow: .venv/installed-dev
	$(PYTEST) -m slow

faults: .venv/installed-dev
	$(PY) -m tests.faults
	$(PYTEST) -rs -m 'slow or not slow' tests/parallel/test_two_hosts.py
	$(PY) benchmarks/rank_faults.py
	$(PY) benchmarks/serve_faults.py

parallel: .venv/installed-dev
	$(PYTEST) -m 'slow or parallel or not slow' tests/parallel

interop: .venv/installed-dev
	$(PIP) 'llama-cpp-python>=0.3.16'
	$(PY) tests/interop/published.py build/tokenizers
	$(PY) -m pytest -rs -s tests/interop/gguf/test_llama_cpp.py tests/interop/test_published_tokenizers.py

fuzz: .venv/installed-dev
	FUZZ_TIMES=$${FUZZ_TIMES:-10} $(PYTEST) --timeout 7200 tests/fuzz

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/installed-dev
	$(PY) benchmarks/prepare.py
	$(PY) benchmarks/loader.py
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/allocator.py
	$(PY) benchmarks/throughput.py
	$(PY) benchmarks/time_to_loss.py
	$(PY) benchmarks/without.py
	$(PY) benchmarks/lstm.py
	$(PY) benchmarks/scaling_law.py
	$(PY) benchmarks/plan.py
	$(PY) benchmarks/dry_run.py
	$(PY) benchmarks/neighbours.py
	$(PY) benchmarks/scaling.py
	$(PY) benchmarks/recipe.py
	$(PY) benchmarks/finetune.py
	$(PY) benchmarks/decode.py
	$(PY) benchmarks/serve.py
	$(PY) benchmarks/pages.py
	$(PY) benchmarks/checkpoint.py
	$(PY) benchmarks/quickstart.py --write

# With the Python that has torch: .venv's, else the machine's own, else .venv's once it is made.
gpu:
	@if test ! -x $(PY) && ! $(PYTHON) -c 'import torch' 2>/dev/null; then $(MAKE) .venv/installed-dev; fi
	@python=$(PY); test -x $(PY) || python=$(PYTHON); \
	$$python benchmarks/gpu.py $(if $(MINUTES),--minutes $(MINUTES)) $(PARTS)

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	touch .venv/installed $@

# What tests of the playground need besides: Chromium (Debian's, where that can be installed) and what
# looks for faults of accessibility. They are skipped where these cannot be had.
build/axe-core:
	command -v chromedriver >/dev/null || test "$$(id -u)" != 0 \
		|| (apt-get update -qq && apt-get install -y -qq chromium chromium-driver) >/dev/null || true
	mkdir -p build
	cd build && file=$$(npm pack --silent --fetch-retries=1 axe-core@4.11.0) && tar xzf $$file \
		&& mv package axe-core && rm $$file || true

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.11 …" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv runs build *.egg-info
	for folder in data/*/; do test -f $$folder/__init__.py || rm -rf $$folder; done
