import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import write_config
from published import ARCH, MICRO, STAMP, random_weights, write_checkpoint

from fcvit_mm.apis.load import build_model
from fcvit_mm.engine.config import load_config


@pytest.fixture(scope='session')
def micro(tmp_path_factory):
    """The folder of a run of a very small classifier, with config, checkpoint and logs."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('micro') / 'configs'
    logs = folder / STAMP / 'vis_data'
    logs.mkdir(parents=True)
    config = write_config('classification', folder, '/data/of/somebody/flowers', MICRO.format(arch=ARCH))
    config = config.rename(folder / 'fcvit_micro_flowers.py')
    rows = [
        {'loss': 1.0, 'epoch': 2, 'iter': 8, 'step': 8},
        {'accuracy/top1': 11.5, 'step': 2, 'time': 1.0},
        {'loss': 1.0, 'epoch': 3, 'iter': 12, 'step': 12},
        {'accuracy/top1': 61.256, 'step': 3, 'time': 1.0},
    ]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)) + '\n{"accuracy/to')
    (folder / STAMP / f'{STAMP}.log').write_text('Runtime environment:\n    GPU number: 2\n')
    model = build_model(load_config(str(config)))
    write_checkpoint(
        folder / 'epoch_3.pth',
        random_weights(model),
        sizes=np.array([[1.5]]),
        label_map={0: 1},
        file=Path('/home/somebody'),
    )
    return SimpleNamespace(folder=folder, config=str(config), checkpoint=str(folder / 'epoch_3.pth'))
