"""Annotations, files and settings with which the ground truth has no perfect score by CocoMetric."""

import json

import pytest
from problems import validation_problems

from fcvit_mm.preflight.ground_truth import coco


def test_annotations_without_iscrowd(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', lambda content: [each.pop('iscrowd') for each in content['annotations']])
    problem = validation_problems(cfg)
    assert problem.startswith('val_evaluator: ') and "have no 'iscrowd'" in problem and '"iscrowd": 0' in problem
    assert '(ids 1, 2, 3, ...)' in problem


def number_from(first):
    def change(content):
        for index, each in enumerate(content['annotations'], first):
            each['id'] = index

    return change


def test_id_0_lowers_the_score(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', number_from(0))
    validation_problems(cfg, 0)
    (line,) = logged
    assert 'the ground truth itself scores only coco/bbox_mAP' in line and 'an annotation has the id 0' in line
    logged.clear()
    change_annotations(data, 'val', number_from(7))
    validation_problems(cfg, 0)
    assert logged == []


def only_crowds(content):
    for each in content['annotations']:
        each['iscrowd'] = 1


def one_image_empty_one_of_crowds(content):
    first, second = (image['id'] for image in content['images'][:2])
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first]
    for each in content['annotations']:
        each['iscrowd'] = int(each['image_id'] == second)


def test_empty_images_and_crowds_are_accepted(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', one_image_empty_one_of_crowds)
    validation_problems(cfg, 0)
    assert not [line for line in logged if 'never occur' not in line]
    change_annotations(data, 'val', only_crowds)
    validation_problems(cfg, 0)
    assert 'no object in the 5 images tested' in logged[-1]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: [each.update(id=each['id'] + 1000) for each in content['images']], 'are not in ann_file'),
        (lambda content: content['images'][0].update(file_name='a.jpg'), 'have the ids of others'),
        (lambda content: content['categories'].reverse(), 'in another order'),
        (lambda content: content['categories'].pop(), 'lacks the categories triangle'),
        (lambda content: [each.update(bbox=[1, 1, 5, 5]) for each in content['annotations']], 'are not in the file'),
    ],
)
def test_annotation_file_of_the_evaluator_differs(make_config, tmp_path, change, message):
    cfg, data = make_config('detection')
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    change(content)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    assert 'other.json does not exist' in validation_problems(cfg)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    assert message in validation_problems(cfg)
    (tmp_path / 'other.json').write_text(json.dumps(content)[:-9])
    assert 'other.json cannot be read (JSONDecodeError' in validation_problems(cfg)


def test_permuted_category_names_are_a_warning(make_config, logged, tmp_path):
    cfg, data = make_config('detection')
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    for each, name in zip(content['categories'], ('cross', 'circle', 'square', 'star', 'triangle')):
        each['name'] = name
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    validation_problems(cfg, 0)
    assert len(logged) == 1 and 'results of single classes will have wrong names' in logged[0]


@pytest.mark.parametrize(
    'mask', [[[1, 1, 9, 9]], [[]], [[5, 5]], [1, 1, 9, 1, 9, 9], [[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]], [], None]
)
def test_masks_that_pycocotools_cannot_read(make_config, change_annotations, mask):
    cfg, data = make_config('detection')
    # The pipeline of the data set loads no masks, so only the metric reads them.
    cfg.val_dataloader.dataset.pipeline[2].with_mask = False
    change_annotations(data, 'val', lambda content: content['annotations'][1].update(segmentation=mask))
    problem = validation_problems(cfg)
    assert 'have a segmentation that the metric cannot read (ids 2): ' in problem
    # Boxes can still be evaluated.
    cfg.val_evaluator.metric = 'bbox'
    validation_problems(cfg, 0)


def test_skipped_objects_lower_the_score(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', lambda content: content['annotations'][2].update(bbox=[3, 3, 0.5, 9]))
    validation_problems(cfg, 0)
    assert 'have an empty box' in logged[0] and '(ids 3)' in logged[0]
    assert (
        'the ground truth itself scores only coco/bbox_mAP' in logged[1]
        and '(ids 3), and are skipped by the data set' in logged[1]
    )


def test_subset_of_the_annotation_file(make_config, logged):
    cfg, _ = make_config('detection', {'val_dataloader.dataset.indices': 3})
    validation_problems(cfg, 0)
    assert '2 images of the file' in logged[-1] and 'are not in the data set and count as missed' in logged[-1]


def test_only_a_part_of_a_large_data_set_is_evaluated(make_config, logged, monkeypatch):
    monkeypatch.setattr(coco, 'IMAGES', 2)
    validation_problems(make_config('detection')[0], 0)
    assert 'the ground truth of 2 of 5 images is evaluated by CocoMetric' in logged[-1]


def two_objects_an_image(content):
    kept = {}
    for each in content['annotations']:
        kept.setdefault(each['image_id'], []).append(each)
    content['annotations'] = [each for found in kept.values() for each in found[:2]]


def test_proposal_nums(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', two_objects_an_image)
    cfg.val_evaluator.update(metric=['bbox', 'proposal', 'proposal_fast'])
    validation_problems(cfg, 0)
    assert not [line for line in logged if 'never occur' not in line]
    cfg.val_evaluator.update(metric='bbox', proposal_nums=(1, 10, 300))
    assert 'with proposal_nums=(1, 10, 300), which lacks 100' in validation_problems(cfg)
    cfg.val_evaluator.update(proposal_nums=(100,))
    assert 'CocoMetric fails on the data set (IndexError' in validation_problems(cfg)


def test_proposal_fast_with_images_in_another_order(make_config, tmp_path, change_annotations):
    cfg, data = make_config('detection')
    content = json.loads(change_annotations(data, 'val', two_objects_an_image).read_text())
    content['images'].reverse()
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg.val_evaluator.update(ann_file=str(tmp_path / 'other.json'), metric='bbox')
    validation_problems(cfg, 0)
    cfg.val_evaluator.metric = 'proposal_fast'
    assert 'proposal_fast pairs images by index' in validation_problems(cfg)


def test_ids_given_as_strings(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(
        data, 'val', lambda content: [each.update(id=str(each['id'])) for each in content['annotations']]
    )
    assert 'have an id that is text, but the metric computes with it' in validation_problems(cfg)
