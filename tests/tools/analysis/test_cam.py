"""The command cam.py with targets given by name and index."""

import json

import pytest
import torch
from networks import TOY_CLASSES as NAMES
from networks import Toy
from PIL import Image

from fcvit_mm.apis.load import Network, Prepared
from fcvit_mm.images import read_image


def prepare(path, size=None):
    image = read_image(path)
    return Prepared(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, image, image.shape[:2])


def test_writes_figures_and_numbers(tmp_path, command, image_folder, monkeypatch, capsys):
    pytest.importorskip('pytorch_grad_cam')
    monkeypatch.setattr(
        'fcvit_mm.apis.load.load_network',
        lambda config, checkpoint, device: Network('toy', Toy(), 'classification', checkpoint, prepare, NAMES),
    )
    out = tmp_path / 'out'
    command('cam')(['toy.py', 'toy.pth', str(image_folder), '--target', 'rose', '0', '--out', str(out)])
    found = json.loads((out / 'cam.json').read_text())
    assert [[each['target_name'] for each in image['maps']] for image in found['images']] == [['rose', 'daisy']] * 2
    assert [image['image'] for image in found['images']] == [str(image_folder / f'{i}.png') for i in range(2)]
    assert capsys.readouterr().out.split() == [str(out / name) for name in ('cam.png', 'cam.json')]
    with Image.open(out / 'cam.png') as figure:
        assert figure.format == 'PNG'
