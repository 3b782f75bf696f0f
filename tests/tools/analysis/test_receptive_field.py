"""The command receptive_field.py."""

import json


def test_writes_figures_and_numbers(tmp_path, command, image_folder, classifier):
    out = tmp_path / 'out'
    command('receptive_field')([classifier, '--images', str(image_folder), '--size', '32x48', '--out', str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        'receptive_field.json',
        'receptive_field_fcvit_tiny_in1k.png',
    ]
    found = json.loads((out / 'receptive_field.json').read_text())
    layers = found['networks']['fcvit_tiny_in1k']['layers']
    assert [layer['layer'] for layer in layers] == [f'stages.{i}.blocks.{j}' for i, j in enumerate((2, 2, 4, 1))]
    assert layers[0]['input'] == [32, 48] and layers[0]['grid'] == [8, 12]
