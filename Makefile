# `make demo` and `make test` need Python >= 3.10 and a package index, nothing else.
# Where the default index would bring a CUDA build of torch that you do not want, set PIP_EXTRA_INDEX_URL to the
# index of the CPU builds: pip reads that variable by itself.

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Nothing here may depend on a download, so a cache miss must fail at once instead of waiting for the network.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_EVALUATE_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test docs lint style clean wheel-test audit-deps

help:
	@echo "make demo     install into $(VENV), then forget digits and print the table"
	@echo "make test     install into $(VENV), then lint, types and tests"
	@echo "make docs     build the documentation into docs/site"
	@echo "make lint     ruff, mypy and the layers of imports only"
	@echo "make style    format the code and fix what ruff can fix"
	@echo "make wheel-test  the wheel alone, in an empty environment, runs the first commands of README.md"
	@echo "make audit-deps  known vulnerabilities and licences of what is installed in $(VENV); asks an advisory service"
	@echo "make clean    remove $(VENV) and every cache"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/hf-unlearn demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a worker: models this small lose time to threads, and workers that share cores lose more.
# A file mostly stays with one worker, where what its tests share is made once; who is done early takes over some.
test: export OMP_NUM_THREADS := 1
test: lint
	$(BIN)/pytest -n $(TEST_WORKERS) --dist worksteal --doctest-modules tests hf_unlearn

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q -E -b html docs docs/site
	@echo "The documentation is in docs/site/index.html"

# Some minutes, and some gigabytes where the index has CUDA builds. CONSTRAINT= installs the newest of everything.
wheel-test: CONSTRAINT ?= constraints.txt
wheel-test:
	$(PYTHON) benchmarks/wheel_test.py --out benchmarks/results/wheel-test.txt $(if $(CONSTRAINT),--constraint $(CONSTRAINT))

# The tools have an environment of their own, and are no dependencies of anything.
audit-deps: $(INSTALLED)
	test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && \
		$(VENV)-audit/bin/python -m pip install --disable-pip-version-check pip-audit pip-licenses)
	$(VENV)-audit/bin/pip-licenses --python $(BIN)/python --order=license
	$(VENV)-audit/bin/pip-audit --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-audit .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis docs/site
