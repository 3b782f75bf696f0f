"""Commands of tools/analysis, imported as modules, and images, configs and checkpoints for them."""

from functools import partial

import numpy as np
import pytest
import torch
from harness import ROOT, call_tool, load_tool
from PIL import Image

from fcvit_mm.apis.load import load_network

CLASSIFIER = str(ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py')


@pytest.fixture
def command():
    """Return a function that returns the command of a name, as a function of its arguments."""
    return lambda name: partial(call_tool, load_tool(f'analysis/{name}.py'))


@pytest.fixture
def image_folder(tmp_path):
    """A folder with two small images of noise."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return folder


@pytest.fixture
def classifier():
    """The config of an FCViT classifier."""
    pytest.importorskip('mmpretrain')
    return CLASSIFIER


@pytest.fixture(scope='session')
def classifier_checkpoint(tmp_path_factory):
    """A checkpoint of this classifier with random weights."""
    pytest.importorskip('mmpretrain')
    path = tmp_path_factory.mktemp('classifier') / 'random.pth'
    torch.save(dict(state_dict=load_network(CLASSIFIER).model.state_dict()), path)
    return str(path)
