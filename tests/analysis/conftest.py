"""Networks of the project's configs, and modules of tools/analysis imported as its commands do."""

import importlib.util
from functools import lru_cache

import pytest
from harness import ROOT

from fcvit_mm.apis.load import load_network

#: One config of each library.
CONFIGS = {
    'mmpretrain': 'classification/fcvit_tiny_in1k.py',
    'mmdet': 'detection/mask_rcnn_fcvit_tiny_coco.py',
    'mmseg': 'segmentation/upernet_fcvit_tiny_ade20k.py',
}


@lru_cache(maxsize=None)
def _build(path):
    return load_network(path)


@pytest.fixture
def project_network():
    """Library -> path of a config of the project for it, and its network with random weights. Not to be changed."""

    def get(library):
        pytest.importorskip(library)
        path = str(ROOT / 'configs' / CONFIGS[library])
        return path, _build(path)

    return get


@pytest.fixture
def command(monkeypatch):
    """Name -> the command's module. By path, for dev/benchmark has modules of the same names."""
    folder = ROOT / 'tools' / 'analysis'
    monkeypatch.syspath_prepend(str(folder))

    def load(name):
        spec = importlib.util.spec_from_file_location(f'tools_analysis_{name}', folder / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
