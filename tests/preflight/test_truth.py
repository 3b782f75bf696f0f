import json
import shutil

import pytest
from harness import LIBRARIES, write_config

from fcvit_mm.engine.config import load_config
from fcvit_mm.preflight import checks, truth
from fcvit_mm.preflight.checks import data_problems


@pytest.fixture
def own(tmp_path, shapes, monkeypatch):
    """Task -> a config on a copy of its data set, that copy, and the remarks that are made."""
    said = []
    for module in (checks, truth):
        monkeypatch.setattr(module, 'print_log', lambda message, **options: said.append(message))

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        data = tmp_path / 'data'
        shutil.copytree(shapes(task), data)
        return load_config(write_config(task, tmp_path, data)), data, said

    return get


def change_val(data, change):
    path = data / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('task', LIBRARIES)
def test_good_data_score_perfectly_in_silence(own, task):
    cfg, _, said = own(task)
    assert data_problems(cfg, ['val_dataloader']) == [] and said == []


def test_annotations_without_iscrowd(own):
    cfg, data, _ = own('detection')
    change_val(data, lambda content: [each.pop('iscrowd') for each in content['annotations']])
    (problem,) = data_problems(cfg, ['val_dataloader'])
    assert problem.startswith('val_evaluator: ') and "have no 'iscrowd'" in problem and '"iscrowd": 0' in problem


def test_id_0_is_a_remark_with_what_it_costs(own):
    cfg, data, said = own('detection')

    def number(content):
        for index, each in enumerate(content['annotations']):
            each['id'] = index

    change_val(data, number)
    assert data_problems(cfg, ['val_dataloader']) == []
    assert 'has the id 0' in said[0] and 'the truth itself scores coco/bbox_mAP' in said[1]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: [each.update(id=each['id'] + 1000) for each in content['images']], 'are not in ann_file'),
        (lambda content: content['categories'].reverse(), 'in another order'),
        (lambda content: content['categories'].pop(), 'lacks the categories triangle'),
    ],
)
def test_file_of_the_evaluator(own, tmp_path, change, message):
    cfg, data, _ = own('detection')
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    change(content)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    (problem,) = data_problems(cfg, ['val_dataloader'])
    assert 'other.json does not exist' in problem
    (tmp_path / 'other.json').write_text(json.dumps(content))
    (problem,) = data_problems(cfg, ['val_dataloader'])
    assert message in problem


@pytest.mark.parametrize(
    'mask', [[[1, 1, 9, 9]], [[]], [[5, 5]], [1, 1, 9, 1, 9, 9], [[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]]]
)
def test_masks_that_pycocotools_cannot_read(own, mask):
    cfg, data, _ = own('detection')
    change_val(data, lambda content: content['annotations'][0].update(segmentation=mask))
    assert 'have a segmentation that the metric cannot read' in '\n'.join(data_problems(cfg, ['val_dataloader']))


def test_topk_above_the_classes(own):
    cfg, _, _ = own('classification')
    cfg.val_evaluator.topk = (1, 9)
    (problem,) = data_problems(cfg, ['val_dataloader'])
    assert 'topk=(1, 9), but there are 5 classes: set topk=(1,)' in problem
