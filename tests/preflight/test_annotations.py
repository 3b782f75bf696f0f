import json
import math

import pytest

from fcvit_mm.preflight.annotations import FATAL, SKIPPED, coco_faults

GOOD = dict(
    id=1,
    image_id=1,
    category_id=1,
    bbox=[2, 2, 10, 10],
    area=100,
    iscrowd=0,
    segmentation=[[2, 2, 12, 2, 12, 12, 2, 12]],
)


def faults(with_masks=True, **changes):
    instance = {key: value for key, value in dict(GOOD, **changes).items() if value is not None}
    return coco_faults(
        dict(
            images=[dict(id=1, width=64, height=48)],
            categories=[dict(id=1, name='a')],
            annotations=[GOOD, dict(instance, id=2)],
        ),
        with_masks,
    )


def test_good_annotations():
    assert faults() == ([], [])
    assert faults(segmentation=dict(size=[48, 64], counts='x')) == ([], [])
    assert faults(with_masks=False, segmentation=None) == ([], [])
    assert coco_faults(dict(images=[dict(id=1, width=4, height=4)], categories=[]), True) == ([], [])


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('category', dict(category_id=9)),
        ('image', dict(image_id=7)),
        ('empty', dict(bbox=[2, 2, 0, 10])),
        ('empty', dict(area=0)),
        ('outside', dict(bbox=[70, 2, 5, 5])),
        ('outside', dict(bbox=[-9, 2, 5, 5])),
        ('polygon', dict(segmentation=[[1, 1, 2, 2]])),
        ('polygon', dict(segmentation=[[1, 1, 2, 2, 3, 3, 4]])),
        ('beyond', dict(segmentation=[[-20, 2, 12, 2, 12, 12]])),
    ],
)
def test_what_mmdet_skips_is_counted(kind, changes):
    fatal, skipped = faults(**changes)
    assert fatal == [] and skipped == [f'1 of 2 annotations {SKIPPED[kind]} (ids 2)']


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('keys', dict(bbox=None)),
        ('keys', dict(area=None)),
        ('box', dict(bbox=[1, 2, 3])),
        ('box', dict(bbox='1,2,3,4')),
        ('box', dict(bbox=[1, 2, math.nan, 4])),
        ('box', dict(area='much')),
        ('mask', dict(segmentation=None)),
        ('mask', dict(segmentation=[])),
        ('far', dict(segmentation=[[1e9, 2, 12, 2, 12, 12]])),
        ('far', dict(segmentation=[[math.inf, 2, 12, 2, 12, 12]])),
        ('rle', dict(segmentation=dict(size=[4, 4], counts=''))),
    ],
)
def test_what_would_end_training_is_refused(kind, changes):
    fatal, skipped = faults(**changes)
    assert skipped == [] and fatal == [f'1 of 2 annotations {FATAL[kind]} (ids 2)']


def test_ids_that_are_not_unique():
    content = dict(images=[dict(id=1, width=64, height=48)] * 2, categories=[dict(id=1)], annotations=[GOOD, GOOD])
    assert coco_faults(content, True)[0] == [
        '1 of 2 annotations have no id of their own',
        '1 of 2 images have the id of another',
    ]


def test_it_is_json_that_is_read():
    assert coco_faults(json.loads(json.dumps(dict(images=[], categories=[], annotations=[]))), True) == ([], [])
