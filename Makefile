# make demo        classify real photos with the embedded checkpoint, write the picture of the result
# make test        the tests (no network, no GPU, minutes)
# make check       lint, docstring and security rules, format, types
# make test-full   the slow tests, those that need a GPU, and all of them as where a framework is not installed
# make test-without-torch, make test-without-keras   what a user calls where that framework is not installed
# make bench       the measured comparisons, on a machine that does nothing else (first run: installs 8 GB)
# make notebooks   the notebooks, from the scripts in examples/
# make space       the web demo, on http://127.0.0.1:7860
# make browser     the page that runs the .tflite file in the browser, into spaces/browser/dist (needs Node.js)
# make docs        the documentation, into site/
#
# Needs Python 3.11 and make; everything else is installed into .venv, once. The stamp files in .venv record
# what is installed, so that a second call installs nothing and a changed requirement installs again.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIN := .venv/bin
# Python compiles what it imports, which is a fifth of what is installed.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
REQUIREMENTS := setup.py pyproject.toml constraints.txt
# Two processes, each with one thread: much of the time goes into tracing TensorFlow graphs, which takes one. A process
# that has done its half takes tests from the other. WORKERS=0: in the process itself.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 30
SOURCES := src tf conversion spaces tests examples benchmarks docs setup.py

.PHONY: demo test test-full test-without-torch test-without-keras check bench notebooks space browser docs
.DELETE_ON_ERROR:

demo: .venv/.demo
	$(BIN)/python examples/demo.py

test: .venv/.test
	$(PYTEST) tests

test-full: .venv/.test
	$(PYTEST) tests -m "not hub"
	$(NO_TORCH) -m "tf and not parity and not slow and not hub and not gpu" $(KERAS_TESTS)
	$(NO_KERAS) tests

# Where one of the two is not installed: import, load, save, predict, train, convert; `test-full` takes every test that
# can run so. The files are named because the others need not be imported to know that they have no such test.
NO_TORCH := MOBILEVIT_HUB_HIDE=torch,torchvision $(PYTEST)
NO_KERAS := MOBILEVIT_HUB_HIDE=tensorflow,keras,h5py $(PYTEST)
KERAS_TESTS := $(wildcard tests/test_keras_*.py)
ALONE := $(shell grep -l mark.alone tests/test_*.py)

test-without-torch: .venv/.test
	$(NO_TORCH) -m "alone and not parity" $(filter $(KERAS_TESTS),$(ALONE))

test-without-keras: .venv/.test
	$(NO_KERAS) -m "alone and not parity" $(filter-out $(KERAS_TESTS),$(ALONE))

bench: .venv/.test
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/resolution.py
	$(BIN)/python benchmarks/comparison.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/tflite_speed.py
	$(BIN)/python benchmarks/demo_load.py

notebooks: .venv/.test
	for script in finetune_keras finetune_pytorch first_steps; do \
		$(BIN)/jupytext --quiet --to ipynb --update --output examples/$$script.ipynb examples/$$script.py || exit 1; \
	done

docs: .venv/.test
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

BROWSER_MODEL := spaces/browser/public/models/mobilevit-xxs-tiny-imagenet

browser: $(BROWSER_MODEL)-fp32.tflite $(BROWSER_MODEL)-int8-dynamic.tflite spaces/browser/node_modules/installed
	cd spaces/browser && npm run build
	@echo "The page is in spaces/browser/dist; npm --prefix spaces/browser run preview shows it."

spaces/browser/node_modules/installed: spaces/browser/package-lock.json
	cd spaces/browser && npm ci
	touch $@

$(BROWSER_MODEL)-%.tflite: src/mobilevit_hub/assets/mobilevit-xxs-tiny-imagenet/model.safetensors | .venv/.space
	mkdir -p $(@D)
	$(BIN)/mobilevit-hub export mobilevit-xxs-tiny-imagenet $@ --precision $* --overwrite

space: .venv/.space
	$(BIN)/mobilevit-hub demo

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

.venv/.space: .venv/.torch $(REQUIREMENTS)
	$(INSTALL) -e ".[demo]"
	touch $@

# timm without its dependencies: its torchvision would bring another build of torch, and the tests do without it.
.venv/.test: .venv/.torch $(REQUIREMENTS)
	$(INSTALL) -e ".[torch,tf,export,train,eval,demo,docs,dev]"
	$(INSTALL) --no-deps timm
	touch $@

# The package as one folder of links, as it is when installed: type checkers cannot follow the import hook by which
# an editable install finds tf/ and conversion/. Made afresh each time, so that it holds no file that has gone.
.PHONY: .types
.types:
	rm -rf .types
	mkdir -p .types/mobilevit_hub
	ln -s $(CURDIR)/src/mobilevit_hub/* $(CURDIR)/tf $(CURDIR)/conversion $(CURDIR)/spaces .types/mobilevit_hub/
