"""tools/visualize.py draws predictions of all tasks on a folder of images."""

import shutil

import cv2
import numpy as np
import pytest
from harness import call_tool, load_tool, run_tool

from fcvit_mm.apis.draw import build_drawer
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import UserError

FOLDERS = {'classification': 'val/star', 'detection': 'val2017', 'segmentation': 'images/validation'}


@pytest.mark.parametrize('task', FOLDERS)
def test_predictions_are_drawn_on_a_folder(trained, tmp_path, task):
    result = trained(task)
    inputs = tmp_path / 'in'
    shutil.copytree(result.data / FOLDERS[task], inputs)
    first = sorted(inputs.iterdir())[0]
    # The image is blue, so that exchanged channels are noticed whatever is drawn.
    cv2.imwrite(str(first), (cv2.imread(str(first)) * (0.2, 1.0, 0.2) + (200.0, 0.0, 0.0)).astype(np.uint8))
    (inputs / 'broken.jpg').write_bytes(first.read_bytes()[:200])
    done = run_tool(
        'visualize.py',
        result.config,
        result.checkpoint,
        inputs,
        '--out-dir',
        tmp_path / 'out',
        '--score-thr',
        0.01,
        '--opacity',
        0.3,
        '--device',
        'cpu',
        check=False,
    )
    # A corrupt image is skipped and reported.
    assert done.returncode == 1 and '1 of' in done.stdout and 'broken.jpg cannot be decoded' in done.stdout
    assert not any(word in done.stdout for word in ('Traceback', 'Failed to search registry', 'is out of bounds'))
    drawn = cv2.imread(str(tmp_path / 'out' / f'{first.stem}.png'))
    source = cv2.imread(str(first))
    assert len(list((tmp_path / 'out').iterdir())) == len(list(inputs.iterdir())) - 1
    if task == 'classification':  # enlarged for the text
        drawn = cv2.resize(drawn, source.shape[1::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(drawn.astype(int) - source).mean(2)
    assert (difference > 20).any(), 'nothing is drawn'
    # The image is visible with its channels in the same order. Boxes and labels may cover a small image completely.
    if task == 'detection':
        drawn = build_drawer(load_config(result.config), result.checkpoint, 'cpu', score_thr=1.0)(source)
        difference = np.abs(drawn.astype(int) - source).mean(2)
    assert difference.mean() < np.abs(drawn[..., ::-1].astype(int) - source).mean()


def test_device_and_output_folder_are_checked_first(tmp_path):
    with pytest.raises(UserError, match='--device banana cannot be used here'):
        call_tool(load_tool('visualize.py'), ['a.py', 'b.pth', 'c', '--out-dir', tmp_path, '--device', 'banana'])
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file could not be written: Not a directory'):
        call_tool(load_tool('visualize.py'), ['a.py', 'b.pth', 'c', '--out-dir', tmp_path / 'file'])
