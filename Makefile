# Everything here works on a fresh clone with Python 3.11+ and make: .venv is made on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: venv demo test check bench docs report clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## the whole loop on the embedded pipeline and weights; names its report.html
	$(BIN)/w2w demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## adapters per hour, ours against one person at a time
	$(BIN)/python benchmarks/adapters.py

docs: $(READY)  ## README's table and pictures, from docs/results/table1.json and the newest demo
	$(BIN)/python -m w2wpp.docs

report: $(READY)  ## report.html again, from the results of the newest demo
	$(BIN)/python -m w2wpp.report

clean:
	rm -rf .venv build dist *.egg-info
