"""The command similarity.py."""

import json

import numpy as np


def test_writes_figures_and_maps(tmp_path, command, image_folder, classifier, classifier_checkpoint):
    out = tmp_path / 'out'
    command('similarity')(
        [
            classifier,
            classifier_checkpoint,
            str(image_folder / '0.png'),
            *('--out', str(out)),
            *('--size', '64'),
            *('--blocks', 'stages.3'),
        ]
    )
    assert sorted(path.name for path in out.iterdir()) == [
        'similarity.json',
        'similarity.png',
        'similarity_stage4_heads.png',
    ]
    found = json.loads((out / 'similarity.json').read_text())
    assert found['image_size'] == [64, 64] and np.shape(found['maps']['stages.3.blocks.1.mixes.1']) == (8, 2, 2)
    assert found['checkpoint'] == classifier_checkpoint and found['axes'] == ['head', 'row', 'column']
