# make demo        classify real photos with the embedded checkpoint, write the picture of the result
# make test        the tests (no network, no GPU, minutes)
# make check       lint, docstring and security rules, format, types
# make test-full   the slow tests and those that need a GPU as well
#
# Needs Python 3.11 and make; everything else is installed into .venv, once. The stamp files in .venv record
# what is installed, so that a second call installs nothing and a changed requirement installs again.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
REQUIREMENTS := setup.py pyproject.toml constraints.txt
SOURCES := src tf conversion tests examples setup.py

.PHONY: demo test test-full check
.DELETE_ON_ERROR:

demo: .venv/.demo
	$(BIN)/python examples/demo.py

test: .venv/.test
	$(BIN)/python -m pytest tests

test-full: .venv/.test
	$(BIN)/python -m pytest tests -m "not hub"

check: .venv/.test .types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	MYPYPATH=.types $(BIN)/mypy -p mobilevit_hub

# torch goes first and alone: where pip is told of a CPU build, this picks it, and nothing later replaces it.
.venv/.torch:
	$(PYTHON) -m venv .venv
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	touch $@

.venv/.demo: .venv/.torch $(REQUIREMENTS)
	$(INSTALL) -e ".[torch]" matplotlib
	touch $@

# timm without its dependencies: its torchvision would bring another build of torch, and the tests do without it.
.venv/.test: .venv/.torch $(REQUIREMENTS)
	$(INSTALL) -e ".[train,eval,dev]"
	$(INSTALL) --no-deps timm
	touch $@

# The package as one folder of links, as it is when installed: type checkers cannot follow the import hook by which
# an editable install finds tf/ and conversion/. Made afresh each time, so that it holds no file that has gone.
.PHONY: .types
.types:
	rm -rf .types
	mkdir -p .types/mobilevit_hub
	ln -s $(CURDIR)/src/mobilevit_hub/* $(CURDIR)/tf $(CURDIR)/conversion .types/mobilevit_hub/
