"""Shared by all tests: reset of global state, the fast subset, small data sets, and models trained on them."""

import os

import fast
import pytest
import speedups
import torch
from filelock import FileLock
from harness import KINDS, LAST, LIBRARIES, Trained, run_tool, write_config
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

from fcvit_mm.ops import measured

# The slowest modules. They are started first, so that two processes finish at about the same time.
LONG = (
    'test_family.py',
    'test_configs.py',
    'test_interpreter.py',
    'test_exporter.py',
    'test_timm.py',
    'test_train.py',
    'test_example_package.py',
    'test_speed.py',
    'test_sizes.py',
    'test_modified.py',
    'test_convert.py',
    'test_test.py',
    'test_detections.py',
    'test_report.py',
    'test_formats.py',
    'test_demo.py',
    'test_page.py',
    'test_load.py',
    'test_predict.py',
    'test_predictor.py',
    'test_check_resume.py',
    'test_resume.py',
    'test_check_stock_configs.py',
    'test_compile_kernels.py',
    'test_fcvit.py',
    'test_stock.py',
    'test_published_files.py',
    'test_count.py',
    'test_recognize.py',
    'test_get_flops.py',
    'test_timed_networks.py',
    'test_implementations.py',
    'test_dist.py',
    'test_visualize.py',
)


# Use the rules of the tables on every CPU; test_measured.py tests the measured choice.
measured.TUNED_CPUS = ((torch.backends.cpu.get_cpu_capability(), ''),)
speedups.disable_garbage_collection()
speedups.speed_up_configs()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    fast.mark(items)
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    speedups.freeze_imported_objects()


@pytest.fixture(autouse=True)
def reset_global_state():
    """Reset the global variables of MMEngine after each test, so that tests are independent.

    These are default scopes, message hubs, visualizers and loggers, whose files are closed. Registered types are kept,
    because a module that registers them is imported only make_once. PyTorch's number of threads and the environment
    variables of this package are restored.
    """
    threads = torch.get_num_threads()
    environment = {name: value for name, value in os.environ.items() if name.startswith('FCVIT_MM_')}
    yield
    speedups.freeze_imported_objects()
    reset_mmengine()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    for name in [name for name in os.environ if name.startswith('FCVIT_MM_')]:
        del os.environ[name]
    os.environ.update(environment)


def reset_mmengine():
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    waiting = [ManagerMixin]
    while waiting:
        manager = waiting.pop()
        manager._instance_dict.clear()
        waiting += manager.__subclasses__()


def make_once(tmp_path_factory, name, make):
    """Make a folder once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / f'shared_{name}'
    with FileLock(f'{folder}.lock'):
        if not (folder / 'done').exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / 'done').touch()
    return folder


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """Return a function that generates the data set of a task: 8 training and 5 validation images of 64x64 pixels."""

    def get(task):
        from fcvit_mm.datasets import generate

        folder = make_once(
            tmp_path_factory, f'data_{task}', lambda folder: generate(KINDS[task], folder / 'data', 8, 5, 64)
        )
        return folder / 'data'

    return get


@pytest.fixture(scope='session')
def trained(tmp_path_factory, shapes):
    """Return a function that trains a model for two iterations, with a config that inherits one of this project."""

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        data = shapes(task)

        def make(folder):
            config = write_config(task, folder, data)
            done = run_tool('train.py', config, '--work-dir', folder / 'work', cwd=folder)
            (folder / 'output.txt').write_text(done.stdout)

        folder = make_once(tmp_path_factory, f'trained_{task}', make)
        return Trained(
            str(folder / f'{task}.py'),
            str(folder / 'work' / LAST[task]),
            data,
            folder / 'work',
            (folder / 'output.txt').read_text(),
        )

    return get
