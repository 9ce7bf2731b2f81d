# Everything runs in .venv, which `setup` makes in this folder; what runs produce is under out/.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
UV_VERSION := 0.13.9
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-normalise demo-search demo-kafka test test-servers test-long chaos bench lint format clean

help: ## list what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything that demo and test need (some 7 GB on disk)

$(READY): pyproject.toml constraints.txt overrides.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "raybatch needs Python 3.11 or newer, and $(PYTHON) is older: install one, or say make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "this Python has no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	@# bytecode: engines import some 20,000 files each time they load
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --override overrides.txt -e '.[cpu,kafka,dev]'
	@touch $@

demo: demo-normalise demo-search ## run both example pipelines on real input; run it again to see that nothing is redone

demo-normalise: $(READY) ## 10,000 lines of text through a small LLM on vLLM, checked against the right answers
	$(BIN)/python pipelines/normalise/make_input.py --count 10000 --out out/normalise/input --files 4
	$(BIN)/raybatch run pipelines/normalise/pipeline.yaml
	$(BIN)/python pipelines/normalise/check.py out/normalise/output

demo-search: $(READY) ## 12,000 docstrings embedded with MiniLM, then searched
	$(BIN)/python pipelines/search/prepare.py --out out/search --rows 12000
	$(BIN)/raybatch run pipelines/search/pipeline.yaml
	$(BIN)/python pipelines/search/query.py out/search/output

demo-kafka: $(READY) ## demo-normalise from a Kafka topic, killed half-way and finished; needs Java 17 and Maven
	@PYTHONPATH=tests $(BIN)/python -m servers.kafka_jars
	rm -rf out/normalise-kafka
	PYTHONPATH=tests $(BIN)/python -m servers.kafka $(BIN)/python pipelines/normalise/kafka_demo.py --count 10000

test: $(READY) test-servers ## run every test (PYTEST="..." for pytest's own arguments)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

test-servers: $(READY)
	@# says so in one line when Go, npm, Java or Maven is missing; gets them once, into .cache (or RAYBATCH_CACHE)
	@$(BIN)/python tests/servers/build.py
	@PYTHONPATH=tests $(BIN)/python -m servers.azurite
	@PYTHONPATH=tests $(BIN)/python -m servers.kafka_jars

test-long: $(READY) ## kill real engines, and a real run twenty times over; half an hour on an idle machine
	$(BIN)/python -m pytest -m long $(PYTEST)
	$(BIN)/python tests/faults/kill_twenty_times.py

chaos: $(READY) test-servers ## harm real runs at random for MINUTES=10 and count every row (CHAOS="..." for its own arguments)
	$(BIN)/python tests/faults/chaos.py --minutes $(or $(MINUTES),10) $(CHAOS)

bench: $(READY) ## measure against the peers; W="W4 W8" for some
	$(BIN)/python -m benchmarks $(W)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what runs produced; keeps .venv
	rm -rf out .pytest_cache .mypy_cache .ruff_cache
