"""The command oversmoothing.py with two networks."""

import json

import pytest


def test_writes_figures_and_numbers(tmp_path, command, image_folder):
    pytest.importorskip('timm')
    out = tmp_path / 'out'
    command('oversmoothing')(
        [
            'timm:deit_tiny_patch16_224',
            'timm:vit_tiny_patch16_224',
            *('--images', str(image_folder / '0.png')),
            *('--size', '48'),
            *('--out', str(out)),
        ]
    )
    assert sorted(path.name for path in out.iterdir()) == [
        'oversmoothing.json',
        'oversmoothing.png',
        'spectra_deit_tiny_patch16_224.png',
        'spectra_vit_tiny_patch16_224.png',
    ]
    found = json.loads((out / 'oversmoothing.json').read_text())
    assert found['images'] == [str(image_folder / '0.png')] and found['logarithm'] == 'natural'
    networks = found['networks']
    assert [len(each['layers']) for each in networks.values()] == [12, 12]
    assert networks['deit_tiny_patch16_224']['checkpoint'] is None
    assert networks['deit_tiny_patch16_224']['layers'][0]['grid'] == [3, 3]
