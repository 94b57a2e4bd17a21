# Two commands: `make demo` runs the main job, `make test` passes the tests. Each does all its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=

# Nothing asks a hub, sends statistics or needs a server.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint bench setup clean

setup: $(STAMP)

demo: $(STAMP) examples/quickstart/checkpoints/convnext/model.safetensors
	$(BIN)/sweeper run examples/quickstart/study.yaml $(DEMO_ARGS)

examples/quickstart/checkpoints/convnext/model.safetensors: examples/quickstart/pretrain.py | $(STAMP)
	$(BIN)/python examples/quickstart/pretrain.py
	@touch $@

# What needs no Ray runs on every core; Ray and the faults need the machine to themselves.
test: lint
	$(BIN)/pytest -n auto -m "not ray and not fault"
	$(BIN)/pytest -m "ray or fault"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/trial_overhead.py --workers 1 --rounds 1 --lane-trials 30 --pattern-trials 2
	$(BIN)/python benchmarks/activation_cache.py --architectures encoder --schedules last_blocks --examples 32 --rounds 1
	$(BIN)/python benchmarks/sweep_vs_peers.py --repeats 1 --epochs 2 --peers hf_optuna

# torch first and by its exact version: some indexes serve a CPU build for that one only.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) results examples/*/results examples/*/checkpoints
