# `make run`: set-up and the main job, on a machine with nothing but Python 3.10 or newer.
# `make test`: set-up, lint, types and the whole suite; CI runs the same.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAM := examples/sam
DEMO := $(SAM)/sam_models/sam_demo
REPOSITORY ?=
SOURCES := samtrt training examples benchmarks tests .ci

.PHONY: run test check clients lint format lock audit third-party wheel clean help

help:
	@echo "make run     checkpoint -> parameters -> engine -> mask, on this machine's CPU or GPU"
	@echo "make test    lint, types and all tests"
	@echo "make clients programs that use SAM, with their own encoder and with ours (CLIENTS=\"cellpose samgeo\": those)"
	@echo "make format  what the linter can mend by itself"
	@echo "make lock    pins and hashes of all requirements, anew (needs uv)"
	@echo "make audit   known vulnerabilities of what is pinned (needs pip-audit, npm)"
	@echo "make third-party  THIRD_PARTY.md: the licences of what a wheel ships"
	@echo "make wheel   dist/*.whl with the page's assets (needs npm); REPOSITORY=https://… for its links"
	@echo "make clean   removes the virtual environment and everything that was built"

run: $(DEMO)/engine/encoder.json $(DEMO)/mask_decoder.onnx
	$(BIN)/python $(SAM)/run.py

$(DEMO)/config.json: $(SAM)/sam_models/sam_demo.pth | $(VENV)/run.installed
	$(BIN)/python $(SAM)/params_convert.py --checkpoint $< --output-dir $(DEMO)

$(DEMO)/engine/encoder.json: $(DEMO)/config.json
	$(BIN)/python $(SAM)/build.py --params $(DEMO) --output-dir $(DEMO)/engine

$(DEMO)/mask_decoder.onnx: $(DEMO)/config.json
	$(BIN)/python $(SAM)/export_decoder.py --params $(DEMO) --output $@

test check: lint
	tests/browser/install.sh $(BIN)/python
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder  # two cores: many wait

CLIENTS ?= all

clients: $(VENV)/test.installed
	$(BIN)/python tests/clients/install.py $(CLIENTS)
	SAMTRT_CLIENTS="$(CLIENTS)" $(BIN)/python -m pytest tests/clients

lint: $(VENV)/test.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/test.installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(VENV)/%.installed: requirements.txt locks/requirements.txt locks/requirements-test.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: samtrt needs Python 3.10 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --no-deps --require-hashes -r locks/requirements$(if $(filter test,$*),-test).txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

lock:
	$(PYTHON) .ci/lock.py

audit:
	.ci/audit.sh

third-party: $(VENV)/test.installed
	$(BIN)/python .ci/third_party.py

wheel: $(VENV)/test.installed
	$(BIN)/python -m samtrt.server.assets
	rm -rf build dist
	SAMTRT_REPOSITORY=$(REPOSITORY) $(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv-clients $(DEMO) $(SAM)/outputs build dist
