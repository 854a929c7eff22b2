# Everything that is done with this tree by hand. On a bare machine each target first makes what it
# needs: an environment in .venv, by any Python from 3.11 on.

.PHONY: help serve mesh test soak bench docs lint fuzz clean

VENV := .venv
BIN := $(VENV)/bin
ENVIRONMENT := $(VENV)/.made

help:
	@echo "make serve   run a node on http://127.0.0.1:8080, its data in ./nkv-data"
	@echo "make mesh    run five nodes of a mesh on loopback, ports 8080 to 8084"
	@echo "make test    run the whole test matrix"
	@echo "make soak    run the long randomised tests, on every Python found"
	@echo "make bench   measure, and write the figures into docs/performance.md"
	@echo "make docs    check the documentation against the code"
	@echo "make lint    format, lint and type checks"
	@echo "make fuzz    look for inputs that make parsers do something new, and keep them"

serve: $(ENVIRONMENT)
	exec $(BIN)/nkv serve $(ARGS)

mesh: $(ENVIRONMENT)
	exec .ci/mesh $(BIN)/nkv

test: $(ENVIRONMENT)
	.ci/services
	.ci/matrix $(BIN)/tox

soak: $(ENVIRONMENT)
	.ci/services
	NKV_SOAK=1 .ci/matrix $(BIN)/tox -m soak

bench: $(ENVIRONMENT)
	.ci/services
	$(BIN)/python -m benchmarks

docs: $(ENVIRONMENT)
	$(BIN)/python -m pytest -q tests/architecture

lint: $(ENVIRONMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(ENVIRONMENT): pyproject.toml .ci/environment
	.ci/environment $(VENV)
	@touch $@

fuzz: $(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	$(BIN)/python -m tests.fuzz.gather

clean:
	rm -rf $(VENV) .tox dist .pytest_cache .mypy_cache .ruff_cache
