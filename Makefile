# The two commands of README.md. Both make their own .venv from constraints.txt.
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test check clean

# An earlier demo's folder is replaced, finished or not; another folder of that name is left for the command to refuse.
demo: $(READY)
	@if [ -e demo/almanac.tsv ]; then echo "demo/ holds an earlier demo, which is removed."; rm -rf demo; fi
	$(VENV)/bin/ragstone demo --output_dir demo

test: $(READY)
	scripts/test

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
