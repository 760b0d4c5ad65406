# Two commands on a fresh machine: `make quickstart` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help install quickstart app test test-slow test-browser check format bench clean

help:
	@echo "make quickstart   distil, score, export and try a small WikiSQL model on this machine's CPU (8 minutes on 2 cores)"
	@echo "make app          open the app in a browser on this machine"
	@echo "make test         run the tests (CPU, no network)"
	@echo "make test-browser drive the app with a headless Chromium"
	@echo "make check        format check, lint, type check"
	@echo "make bench        speed and memory, as JSON in benchmarks/results/"

$(STAMP): pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install -q --disable-pip-version-check -e ".[dev,onnx,agents,app]"
	@# llama.cpp is compiled here (about 5 minutes on 2 cores, once: pip keeps the wheel). Without it all else works.
	$(PY) -m pip install -q --disable-pip-version-check -e ".[gguf]" || \
		echo "llama-cpp-python could not be built (it needs a C++ compiler and cmake): GGUF files are written, not run; its tests skip"
	touch $(STAMP)

install: $(STAMP)

quickstart: $(STAMP)
	$(PY) -m factory.distill --config factory/quickstart.toml
	$(PY) -m export.gguf runs/quickstart/model --quant Q8_0 --no-mixed
	@if $(PY) -c "import llama_cpp" 2>/dev/null; then \
		$(PY) -m export.gguf runs/quickstart/model --lora adapter --base factory/data/embedded/base-q8_0.gguf --max-drop 1 \
			--out runs/quickstart/model/sql-lora.gguf && \
		$(PY) examples/three_blades.py --sql runs/quickstart/model/sql-lora.gguf; \
	else echo "the graph of three personas needs llama-cpp-python: skipped"; fi

app: $(STAMP)
	$(VENV)/bin/streamlit run app/main.py

test: $(STAMP)
	$(PY) -m pytest -m "not browser" -n auto --dist loadscope

test-slow: $(STAMP)
	$(PY) -m pytest -m "not browser" -n auto --dist loadscope --slow

test-browser: $(STAMP)
	$(PY) -m pytest -m browser -rs tests/app

check: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(STAMP)
	mkdir -p benchmarks/results
	$(PY) -m benchmarks.train --json benchmarks/results/train.json

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache
