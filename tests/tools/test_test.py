import pickle
import re

import cv2
from harness import run_tool


def images(folder):
    return sorted(path for path in folder.rglob('*') if path.suffix in ('.png', '.jpg'))


def test_classification(trained, tmp_path):
    result = trained('classification')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--tta',
        '--out',
        tmp_path / 'out.pkl',
        cwd=tmp_path,
    )
    assert 'accuracy/top1' in done.stdout
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 5 and predictions[0]['pred_score'].shape == (5,)


def test_detection(trained, tmp_path):
    result = trained('detection')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--out',
        tmp_path / 'out.pkl',
        '--show-dir',
        'shown',
        cwd=tmp_path,
    )
    assert 'coco/bbox_mAP' in done.stdout and 'coco/segm_mAP' in done.stdout
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 5 and 'masks' in predictions[0]['pred_instances']
    assert len(images(tmp_path / 'shown')) == 5


def test_segmentation(trained, tmp_path):
    result = trained('segmentation')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path / 'w',
        '--tta',
        '--out',
        tmp_path / 'maps',
        '--show-dir',
        'shown',
        cwd=tmp_path,
    )
    assert 'mIoU' in done.stdout
    maps = images(tmp_path / 'maps')
    assert len(maps) == 5 and len(images(tmp_path / 'shown')) == 5
    # As the data set's own: 0 is what nothing is learned from, 1 to 6 the classes.
    values = cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED)
    assert values.shape == (64, 64) and values.min() >= 1 and values.max() <= 6


def test_checkpoint_of_another_model(trained, tmp_path):
    result = trained('classification')
    done = run_tool(
        'test.py',
        result.config,
        result.checkpoint,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.backbone.arch=b12',
        'model.head.in_channels=512',
        check=False,
    )
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert re.search('does not fit the config: .* have another shape .*convert_checkpoint.py', done.stdout)
