"""What all tests share: MMEngine's state reset, the fast subset, small data sets, and models trained on them."""

import os

import fast
import pytest
import quick
import torch
from filelock import FileLock
from harness import KINDS, LAST, LIBRARIES, Trained, run_tool, write_config
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin

from fcvit_mm.ops import measured

# Modules that take longest. Two processes share the modules out: begun last, one of these would keep one of them alone.
LONG = (
    'test_family.py',
    'test_configs.py',
    'test_interpreter.py',
    'test_exporter.py',
    'test_timm.py',
    'test_train.py',
    'test_stranger.py',
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


# On any CPU the tests ask for what the tables say; test_measured.py asks for what is measured.
measured.TUNED_CPUS = ((torch.backends.cpu.get_cpu_capability(), ''),)
quick.collect_no_garbage()
quick.hurry_configs()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    fast.mark(items)
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    quick.pass_over_what_is_imported()


@pytest.fixture(autouse=True)
def no_state_of_another_test():
    """Forget what MMEngine keeps in global variables, so that no test depends on those before it.

    Default scopes, message hubs, visualizers and loggers (whose files are closed) live until something replaces them.
    Types stay registered: a module that registers them is imported once. Also put back are PyTorch's number of threads
    and this package's environment variables.
    """
    threads = torch.get_num_threads()
    environment = {name: value for name, value in os.environ.items() if name.startswith('FCVIT_MM_')}
    yield
    quick.pass_over_what_is_imported()
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


def once(tmp_path_factory, name, make):
    """Let one of pytest-xdist's workers make a folder that all of them use."""
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
    """Task -> folder of its data set of shapes, with 8 images to train on and 4 held out, 64x64 pixels."""

    def get(task):
        from fcvit_mm.datasets import generate

        folder = once(tmp_path_factory, f'data_{task}', lambda folder: generate(KINDS[task], folder / 'data', 8, 5, 64))
        return folder / 'data'

    return get


@pytest.fixture(scope='session')
def trained(tmp_path_factory, shapes):
    """Task -> what two iterations of tools/train.py made, on a config that inherits one of the project's."""

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        data = shapes(task)

        def make(folder):
            config = write_config(task, folder, data)
            done = run_tool('train.py', config, '--work-dir', folder / 'work', cwd=folder)
            (folder / 'output.txt').write_text(done.stdout)

        folder = once(tmp_path_factory, f'trained_{task}', make)
        return Trained(
            str(folder / f'{task}.py'),
            str(folder / 'work' / LAST[task]),
            data,
            folder / 'work',
            (folder / 'output.txt').read_text(),
        )

    return get
