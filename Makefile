# make demo       set up, then pretrain, detect and draw on generated images (6.5 minutes after set-up in one run)
# make demo-seg   the same for segmentation
# make setup      set up the complete environment (make setup-demo: only for the demos)
# make test       set up, then run the test suite (about 10 minutes on 2 cores)
# make test-fast  a fast subset of all tests (at most 90 seconds on 2 cores)
# make coverage   run the test suite and list the lines that it does not cover
# make lint       style and types of the code, shell scripts, configs against their tables and metafiles, docs
# make docs       build the documentation site: docs/_build/index.html
# make setup-light, make test-light    set up an environment in a few minutes for work on networks only; run its tests
# make release VERSION=X.Y.Z [DRY_RUN=1]    check, build, test and tag a version (CONTRIBUTING.md)
# make clean      remove build outputs (not the environment: `rm -r .venv`)
# VENV=DIR sets the environment; STACK=openmmlab uses the original OpenMMLab packages, in an environment of their own.

STACK ?= onedl
ifeq ($(STACK),onedl)
VENV ?= .venv
else
VENV ?= .venv-$(STACK)
endif
PYTHON_IN_VENV = "$(VENV)/bin/python"
TEST_WORKERS ?= 2

LIGHT = .venv-light
SPHINX = $(PYTHON_IN_VENV) -m sphinx -q -b html docs docs/_build

.PHONY: setup setup-demo setup-light demo demo-seg test test-fast test-light coverage lint docs release clean

setup:
	@dev/setup_env.sh "$(VENV)" $(STACK)

# Without the extras and the tools of tests, lint and docs: the first `make test` installs those.
setup-demo:
	@dev/setup_env.sh "$(VENV)" $(STACK) use

setup-light:
	@dev/setup_env.sh $(LIGHT) light

demo: setup-demo
	@$(PYTHON_IN_VENV) tools/demo.py detect

demo-seg: setup-demo
	@$(PYTHON_IN_VENV) tools/demo.py segment

# One thread per worker: PyTorch's own threads would compete for the cores. Each worker runs whole modules, the longest
# first. A worker that hung or crashed is not replaced: its successor would start with the same test.
WORKERS = -n $(TEST_WORKERS) --max-worker-restart 0 --dist loadscope
PYTEST = OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest $(WORKERS) --no-loadscope-reorder

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) --dist loadgroup -m fast

# The tests that need only torch, MMEngine and timm; the others are skipped.
test-light: setup-light
	OMP_NUM_THREADS=1 $(LIGHT)/bin/python -m pytest $(WORKERS) \
		tests/models tests/ops tests/checkpoints tests/test_timm.py tests/test_example_package.py tests/test_errors.py \
		tests/test_files.py

# Commands and the processes that they fork are counted, too. The data of an earlier run would be added: remove it.
coverage: setup
	rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=
	$(PYTHON_IN_VENV) -m coverage report

lint: setup
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/mypy"
	"$(VENV)/bin/shellcheck" tools/*.sh dev/*.sh dev/benchmark/*.sh .ci/run
	$(PYTHON_IN_VENV) dev/check_configs.py
	$(PYTHON_IN_VENV) dev/fill_tables.py --check
	$(SPHINX) --fail-on-warning --keep-going

docs: setup
	$(SPHINX)
	@echo 'docs/_build/index.html'

release: setup
	$(PYTHON_IN_VENV) dev/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

clean:
	rm -rf build dist docs/_build docs/api *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
