# make demo       set up, then pretrain, detect and draw on generated images (about 8 minutes after set-up)
# make demo-seg   the same for segmentation
# make test       set up, then run the test suite (under 10 minutes on 2 cores)
# make test-fast  the essential questions of everything (at most 90 seconds on 2 cores)
# make coverage   run the test suite and list the lines that it does not reach
# make lint       style of the code and the shell scripts, configs against their tables and metafiles
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

.PHONY: setup demo demo-seg test test-fast coverage lint clean

setup:
	@dev/setup_env.sh $(VENV) $(STACK)

demo: setup
	@$(PYTHON_IN_VENV) tools/demo.py detect

demo-seg: setup
	@$(PYTHON_IN_VENV) tools/demo.py segment

# One thread per worker: PyTorch's own threads would fight over the cores. Each takes modules, the longest first.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON_IN_VENV) -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m fast

coverage: setup
	$(PYTEST) --cov --cov-report=
	$(PYTHON_IN_VENV) -m coverage report

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/shellcheck tools/*.sh dev/benchmark/*.sh .ci/run
	$(PYTHON_IN_VENV) dev/check_configs.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
