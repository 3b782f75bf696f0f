"""The command attention.py with an FCViT and a transformer."""

import json

import pytest
from harness import run_tool


def test_writes_figures_and_statistics(tmp_path, command, image_folder, classifier):
    pytest.importorskip('timm')
    out = tmp_path / 'out'
    command('attention')(
        [
            classifier,
            'timm:deit_tiny_patch16_224',
            *('--images', str(image_folder)),
            *('--size', '48'),
            *('--queries', '0.5,0.5', '0.1,0.9'),
            *('--out', str(out)),
        ]
    )
    assert sorted(path.name for path in out.iterdir()) == [
        'attention.json',
        'attention_deit_tiny_patch16_224.png',
        'attention_fcvit_tiny_in1k.png',
        'comparison.png',
        'statistics.png',
    ]
    found = json.loads((out / 'attention.json').read_text())
    assert found['queries'] == [[0.5, 0.5], [0.1, 0.9]] and len(found['images']) == 2 and found['top'] == 0.1
    assert {
        name: (each['kind'], len(each['layers']), each['images'], each['checkpoint'])
        for name, each in found['networks'].items()
    } == {
        'fcvit_tiny_in1k': ('similarity', 26, 2, None),
        'deit_tiny_patch16_224': ('attention', 12, 2, None),
    }


def test_error_is_one_message(tmp_path):
    done = run_tool(
        'analysis/attention.py', 'a.py', '--images', tmp_path / 'none.png', '--out', tmp_path / 'out', check=False
    )
    assert done.returncode == 1 and 'none.png does not exist' in done.stdout and 'Traceback' not in done.stdout
    assert not (tmp_path / 'out').exists()
