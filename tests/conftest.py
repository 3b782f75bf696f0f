"""Small data sets, and models that tools/train.py trained on them."""

import os

import pytest
from filelock import FileLock
from harness import KINDS, LAST, LIBRARIES, Trained, run_tool, write_config

# Modules that take longest. Two processes share the modules out: begun last, one of these would keep one of them alone.
LONG = (
    'test_configs.py',
    'test_demo.py',
    'test_export.py',
    'test_dist.py',
    'test_train.py',
    'test_triton_kernels.py',
    'test_family.py',
    'test_timm.py',
    'test_sizes.py',
    'test_exported_sizes.py',
    'test_visualize.py',
    'test_report.py',
)


def pytest_collection_modifyitems(items):
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True, scope='module')
def no_scope_of_another_module():
    """MMEngine's default scope lives until the next one: a module must not find another's."""
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()


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
