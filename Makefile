# Everything here works on a fresh clone with Python 3.11+ and make: .venv is made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: venv demo test test-cluster test-avx2 tour site check wheels bench docs report clean

venv: $(READY)

$(READY): pyproject.toml packages/w2wpp-tiny-faces/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e packages/w2wpp-tiny-faces -e '.[dev,docs]'
	touch $@

demo: $(READY)  ## the whole loop on the embedded pipeline and weights; names its report.html
	$(BIN)/w2w demo --table docs/results/table1.json

# One process a core and one more, since some wait for Ray or a browser; at most four. A file's tests stay together, with what they
# made once.
SPREAD := -n $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))") --dist loadfile

# On a real Ray of two nodes, whose processes take longer to start than most tests take.
CLUSTER_TESTS := tests/test_ray.py tests/test_ray_verbs.py

test: $(READY)
	$(BIN)/python -m pytest $(SPREAD) $(CLUSTER_TESTS:%=--ignore %)

test-cluster: $(READY)
	$(BIN)/python -m pytest $(SPREAD) $(CLUSTER_TESTS)

# What depends on the processor, on one without AVX-512 and bfloat16, which torch is told to take this one for.
AVX2_TESTS := tests/test_precision.py tests/test_memory.py tests/test_pca.py tests/test_cpu.py tests/test_adapters.py tests/test_base_training.py tests/test_group.py

test-avx2: $(READY)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(SPREAD) $(AVX2_TESTS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	# In which precision products are taken is said in one file; everything else asks it.
	! grep -rnE 'autocast\(|\.bfloat16\(\)' --include='*.py' src benchmarks tests | grep -v '^src/w2wpp/common/precision.py:'
	$(MAKE) --no-print-directory site

site: $(READY)  ## the documentation as a site, in build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tour: $(READY)  ## run examples/tour.ipynb from top to bottom
	$(BIN)/python benchmarks/tour.py

wheels: $(READY)  ## build both packages into dist/, and try them in empty environments without network
	PYTHON=$(BIN)/python .ci/wheels dist

bench: $(READY)  ## adapters per hour, ours against one person at a time
	$(BIN)/python benchmarks/adapters.py

docs: $(READY)  ## the tables and pictures of README and docs, from files of results, the newest demo and the tour
	$(BIN)/python benchmarks/docs.py
	$(BIN)/python benchmarks/tour.py --pictures docs/pictures

report: $(READY)  ## report.html again, from the results of the newest demo
	$(BIN)/python -m w2wpp.report.html

clean:
	rm -rf .venv build dist *.egg-info
