# make demo       set up, then pretrain, detect and draw on generated images (about 8 minutes after set-up)
# make demo-seg   the same for segmentation
# make setup      set up all that is needed for anything below (make setup-demo: for the demos)
# make test       set up, then run the test suite (about 10 minutes on 2 cores)
# make test-fast  the essential questions of everything (at most 90 seconds on 2 cores)
# make coverage   run the test suite and list the lines that it does not reach
# make lint       style and types of the code, shell scripts, configs against their tables and metafiles, docs
# make docs       build the documentation site: docs/_build/index.html
# make setup-light, make test-light    an environment of a few minutes for work on networks alone, and the tests it runs
# make release VERSION=X.Y.Z [DRY_RUN=1]    check, build, try and tag a version (CONTRIBUTING.md)
# make clean      remove what was built (not the environment: `rm -r .venv`)
# VENV=DIR names the environment; STACK=openmmlab takes the original OpenMMLab packages in one of their own.

STACK ?= onedl
ifeq ($(STACK),onedl)
VENV ?= .venv
else
VENV ?= .venv-$(STACK)
endif
PYTHON_IN_VENV = $(VENV)/bin/python
TEST_WORKERS ?= 2

LIGHT = .venv-light
SPHINX = $(PYTHON_IN_VENV) -m sphinx -q -b html docs docs/_build

.PHONY: setup setup-demo setup-light demo demo-seg test test-fast test-light coverage lint docs release clean

setup:
	@dev/setup_env.sh $(VENV) $(STACK)

# No extras, and no tools of tests, lint and docs: those come with the first `make test`.
setup-demo:
	@dev/setup_env.sh $(VENV) $(STACK) use

setup-light:
	@dev/setup_env.sh $(LIGHT) light

demo: setup-demo
	@$(PYTHON_IN_VENV) tools/demo.py detect

demo-seg: setup-demo
	@$(PYTHON_IN_VENV) tools/demo.py segment

# One thread per worker: PyTorch's own threads would fight over the cores. Each takes modules, the longest first. One
# that hung or crashed is not replaced: its successor would begin with the same test.
WORKERS = -n $(TEST_WORKERS) --max-worker-restart 0 --dist loadscope
PYTEST = OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest $(WORKERS) --no-loadscope-reorder

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) --dist loadgroup -m fast

# What needs no more than torch, MMEngine and timm; tests of the rest are skipped.
test-light: setup-light
	OMP_NUM_THREADS=1 $(LIGHT)/bin/python -m pytest $(WORKERS) \
		tests/models tests/ops tests/checkpoints tests/test_timm.py tests/test_stranger.py tests/test_errors.py \
		tests/test_files.py

# Commands and what they fork are counted, too. What is left of an earlier run would be counted with it.
coverage: setup
	rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=
	$(PYTHON_IN_VENV) -m coverage report

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck tools/*.sh dev/*.sh dev/benchmark/*.sh .ci/run
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
