"""Comparison of training pipelines: their transforms, their distributions and their outputs."""

import numpy as np
import pytest
from harness import ROOT
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from fcvit_mm.errors import UserError

pytest.importorskip('mmpretrain')
pytest.importorskip('timm')

CONFIG = ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py'


@pytest.fixture
def command(load):
    return load('training_data')


def test_faster_transforms_are_replaced_by_those_of_mmpretrain(command):
    found = command.stock_pipeline(
        [
            dict(type='LoadImageFromFile'),
            dict(type='FastRandomResizedCrop', scale=8, interpolation=('bilinear', 'bicubic')),
            dict(type='FastRandomFlip', prob=0.5),
            dict(type='ChannelsFirst'),
            dict(type='PackInputs'),
        ]
    )
    crops = [
        [dict(type='RandomResizedCrop', scale=8, backend='pillow', interpolation=name)]
        for name in ('bilinear', 'bicubic')
    ]
    assert found == [
        dict(type='LoadImageFromFile'),
        dict(type='RandomChoice', transforms=crops),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]
    single = command.stock_pipeline([dict(type='FastRandomResizedCrop', scale=8, interpolation='bicubic')])
    assert single == [dict(type='RandomResizedCrop', scale=8, backend='pillow', interpolation='bicubic')]


def test_distance_of_distributions(command):
    one = np.arange(1000) / 1000
    assert command.distance(one, one) == 0 and command.distance(one, one + 2) == 1
    assert command.distance(one, one + 0.1) == pytest.approx(0.1, abs=2e-3)


def test_significant_differences_are_found(command):
    draw = np.random.RandomState(0)
    same = dict(area=draw.rand(4000), flips=draw.rand(4000), **{'flip happens': draw.rand(4000) < 0.5})
    like = dict(area=draw.rand(4000), flips=draw.rand(4000), **{'flip happens': draw.rand(4000) < 0.5})
    assert all(difference <= allowed for *_, difference, allowed in command.compare(same, like))
    other = dict(like, area=draw.rand(4000) ** 1.2, **{'flip happens': draw.rand(4000) < 0.56})
    found = {name: difference > allowed for name, *_, difference, allowed in command.compare(same, other)}
    assert found == {'area': True, 'flips': False, 'flip happens': True}
    del other['flips']
    assert {row[0]: row[-2] > row[-1] for row in command.compare(same, other)}['flips']
    # A few samples are not significant.
    few = [dict(area=np.zeros(20)), dict(area=np.ones(20))]
    assert not any(difference > allowed for *_, difference, allowed in command.compare(*few))


def test_pipelines_of_a_config_are_compared(command, shapes, capsys):
    folder = shapes('classification') / 'train'
    command.main([str(CONFIG), str(folder), '--samples', '20', '--rounds', '1', '--batch', '2'])
    printed = capsys.readouterr().out
    assert "| mmpretrain's transforms |" in printed and '| timm |' in printed
    assert 'From the same seeds' in printed and '| crop area | 20 |' in printed
    assert '| RandomErasing happens | 20 |' in printed and '| flip happens | 20 |' in printed


def test_folder_without_images_is_refused(command, tmp_path):
    with pytest.raises(UserError, match=f'no images below {tmp_path}'):
        command.main([str(CONFIG), str(tmp_path)])


def write_kinds(folder):
    """Write images in different formats, and return their paths by name."""
    draw = np.random.RandomState(0)
    colors = Image.fromarray(draw.randint(0, 256, (9, 12, 3)).astype(np.uint8)).resize((320, 240), Image.BICUBIC)
    turned = Image.Exif()
    turned[274] = 6
    files = {
        'color.jpg': (colors, {}),
        'grey.jpg': (colors.convert('L'), {}),
        'cmyk.jpg': (colors.convert('CMYK'), {}),
        'turned.jpg': (colors, dict(exif=turned)),
        'progressive.jpg': (colors, dict(progressive=True)),
        'alpha.png': (colors.convert('RGBA'), {}),
        'palette.png': (colors.convert('P'), {}),
        'sixteen.png': (Image.fromarray(draw.randint(0, 65536, (60, 80)).astype(np.uint16)), {}),
        'wide.png': (colors.resize((400, 3)), {}),
        'point.png': (colors.resize((1, 1)), {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return {path.name: str(path) for path in sorted(folder.iterdir())}


def test_pipelines_agree_for_all_kinds_of_images(command, tmp_path):
    ours = [dict(step) for step in Config.fromfile(CONFIG).train_dataloader.dataset.pipeline]
    stock = command.stock_pipeline(ours)
    assert {step['type'] for step in ours} - {step['type'] for step in stock} == {
        *command.STOCK,
        'FastRandomResizedCrop',
        'ChannelsFirst',
    }
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for name, path in write_kinds(tmp_path).items():
            found = command.same_seed(ours, stock, [path], 6)
            # Operations such as solarizing amplify rounding differences.
            assert found['differ'] < 0.05 and found['mean'] < 0.1, f'{name}: {found}'
