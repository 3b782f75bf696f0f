import math

import numpy as np
import pytest
from coco_files import SQUARE

from fcvit_mm.preflight import masks as checked_masks
from fcvit_mm.preflight.limits import TimeLimit
from fcvit_mm.preflight.masks import (
    Mask,
    annotation_ids,
    check_masks,
    describe_distant_points,
    describe_mask,
    loading_step_reader,
    mask_kind,
    metric_reader,
    run_lengths,
)


def test_run_lengths_that_do_not_sum_to_the_image_size():
    message = describe_mask(dict(size=[48, 64], counts=[10, 20]), 64, 48, 'what a library says')
    assert message == 'its run lengths cover 30 pixels, but its size [48, 64] (height, width) has 3072'


RUNS = dict(size=[48, 64], counts='PP3')


@pytest.mark.parametrize('seed', range(4))
def test_compressed_run_lengths_agree_with_pycocotools(seed):
    from pycocotools import mask as masks

    drawn = np.asfortranarray(np.random.default_rng(seed).random((48, 64)) < 0.02 + 0.3 * seed, np.uint8)
    drawn[:, 10:60] = 0  # also a long run
    changes = np.flatnonzero(np.diff(drawn.ravel('F'), prepend=0))
    expected = np.diff(changes, prepend=0, append=drawn.size)
    text = masks.encode(drawn)['counts']
    assert run_lengths(text) == run_lengths(text.decode()) == expected.tolist()


@pytest.mark.parametrize('text', ['', 'PPYo', 'Q', 'PP3 ', 'PP3\x7f', 'PPYo\u00e9', 'O', 'o' * 10**6])
def test_invalid_compressed_run_lengths(text):
    message = describe_mask(dict(size=[48, 64], counts=text), 64, 48, 'what a library says')
    assert message == "its compressed run lengths are empty, truncated or not in COCO's format"


@pytest.mark.parametrize('counts', ['1', 'PP35', b'PPYo1'])
def test_compressed_run_lengths_that_do_not_sum_to_the_image_size(counts):
    message = describe_mask(dict(size=[48, 64], counts=counts), 64, 48, '')
    assert message.startswith('its run lengths cover ')
    assert message.endswith(' pixels, but its size [48, 64] (height, width) has 3072')


@pytest.mark.parametrize(
    'mask, kind',
    [
        (SQUARE, ''),
        (RUNS, ''),
        (None, 'unusual'),
        ([], 'unusual'),
        ([[]], 'unusual'),
        ([[1, 1, 9, 9]], 'unusual'),
        ([[1, 1, 2, 2, 3, 3, 4]], 'unusual'),
        ([1, 1, 9, 1, 9, 9], 'unusual'),
        (dict(size=[4, 4], counts='x'), 'size'),
        (dict(counts='x'), 'size'),
        (dict(size=48, counts='x'), 'size'),
        (5, 'unusual'),
        (dict(size=[48, 64]), 'unusual'),
        (dict(size=[48, 64], counts='1'), 'size'),
        (dict(size=[48, 64], counts='PPYo'), 'size'),
        (dict(size=[48, 64], counts=[10, 3062]), ''),
        (dict(size=[48, 64], counts=[10, 20]), 'size'),
        (dict(size=[48, 64], counts=[10, 'x']), 'unusual'),
        ([[-20, 2, 12, 2, 12, 12]], 'beyond'),
        ([[1e9, 2, 12, 2, 12, 12]], 'far'),
        ([[math.inf, 2, 12, 2, 12, 12]], 'far'),
        ([[math.nan, 2, 12, 2, 12, 12]], 'far'),
        ([['1', 2, 12, 2, 12, 12]], 'far'),
    ],
)
def test_kinds_of_masks(mask, kind):
    assert mask_kind(mask, 64, 48) == kind


def test_unusual_masks_are_tried_first_and_far_ones_never(monkeypatch):
    monkeypatch.setattr(checked_masks, 'USUAL_READ', 2)
    asked = []

    def read(mask):
        asked.append(mask.owner)
        return 'no' if mask.owner in (3, 5) else ''

    masks = [Mask(SQUARE, 64, 48, number, 1) for number in range(7)]
    masks[5] = masks[5]._replace(segmentation=[[]])
    masks[4] = masks[4]._replace(segmentation=[[1e9, 2, 12, 2, 12, 12]])
    masks[3] = masks[3]._replace(segmentation=[[-9, 2, 12, 2, 12, 12]])
    masks[2] = masks[2]._replace(segmentation=dict(size=[4, 4], counts='x'))
    found, beyond = check_masks(masks, read, TimeLimit(), 'a.json')
    assert asked == [5, 3, 0, 6] and [each.owner for each in beyond] == [3]
    assert {message: [each.owner for each in faulty] for message, faulty in found.items()} == {
        'it has points far outside its image, or points that are not numbers': [4],
        'its size is [4, 4], but its image has [48, 64] (height, width)': [2],
        'no': [5, 3],
    }


def test_masks_with_the_same_fault_are_one_problem():
    points = [[[[number, 2], [3, 4], [5, 6]]] for number in range(4)]
    sizes = [dict(size=[number, 4], counts='x') for number in range(4)]
    masks = [Mask(each, 64, 48, number, 1) for number, each in enumerate([*points, *sizes])]
    found, _ = check_masks(masks, lambda mask: '', TimeLimit(), 'a.json')
    assert {message: [each.owner for each in faulty] for message, faulty in found.items()} == {
        'its points are [0, 2], ..., expected the numbers x1, y1, x2, y2, ... one after the other': [0, 1, 2, 3],
        'its size is [0, 4], but its image has [48, 64] (height, width)': [4, 5, 6, 7],
    }


@pytest.mark.parametrize(
    'mask, step, metric',
    [
        (SQUARE, '', ''),
        ([SQUARE[0], [1, 1, 9, 9]], '', ''),
        (None, 'it is missing or empty', 'it is missing or empty'),
        ([], 'it is missing or empty', 'it is missing or empty'),
        ([[1, 1, 9, 9]], 'skipped', 'fewer than three points'),
        ([[]], 'skipped', 'fewer than three points'),
        ([1, 1, 9, 1, 9, 9], 'flat list', 'flat list'),
        (dict(size=[48, 64], counts=7), 'skipped', 'TypeError'),
        (5, 'it is 5, expected a list of polygons or run lengths', 'it is 5, expected a list of polygons or run'),
    ],
)
def test_errors_of_mmdet_and_pycocotools(read_annotations, mask, step, metric):
    from mmdet.datasets.transforms import LoadAnnotations

    _, api = read_annotations(segmentation=mask)
    instance = dict(bbox=[2, 2, 12, 12], bbox_label=0, ignore_flag=0)
    if mask:
        instance['mask'] = mask  # as mmdet does
    message = loading_step_reader(LoadAnnotations(with_bbox=True, with_mask=True))(Mask(mask, 64, 48, instance, 1))
    assert step in message and bool(step) == bool(message)
    message = metric_reader(api)(Mask(mask, 64, 48, api.anns[2], 1))
    assert metric in message and bool(metric) == bool(message) and not message.endswith('.')  # part of a sentence


def test_load_empty_annotations_reads_no_masks():
    from mmdet.datasets.transforms import LoadEmptyAnnotations

    step = LoadEmptyAnnotations(with_mask=True)
    instance = dict(bbox=[2, 2, 12, 12], bbox_label=0, ignore_flag=0, mask=SQUARE)
    assert loading_step_reader(step)(Mask(SQUARE, 64, 48, instance, 1)) == ''


def test_error_of_the_library_is_the_fallback():
    assert describe_mask(SQUARE, 64, 48, 'E: x') == 'E: x' and describe_mask(RUNS, 64, 48, 'E: x') == 'E: x'


def test_ids_of_the_annotations_of_masks(read_annotations):
    _, api = read_annotations(bbox=[3, 3, 9, 9])
    masks = [Mask(None, 64, 48, dict(bbox=[3, 3, 12, 12]), 1), Mask(None, 64, 48, dict(bbox=[0, 0, 1, 1]), 1)]
    assert annotation_ids(api, masks) == [2, 'of image 1']


@pytest.mark.parametrize(
    ('mask', 'words'),
    [
        ([[[1, 2], [3, 4], [5, 6]]], 'its points are [1, 2], ..., expected the numbers x1, y1, x2, y2, ... one after'),
        ([['1', '2', '3', '4', '5', '6']], "its points are text, such as '1', expected numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], 'it has points far outside its image, or points that are not numbers'),
    ],
)
def test_messages_for_points_that_cannot_be_drawn(mask, words):
    assert mask_kind(mask, 64, 48) == 'far' and describe_distant_points(mask).startswith(words)


def test_messages_for_segmentations_of_a_wrong_type():
    assert describe_mask('[[1, 2]]', 64, 48, 'no').startswith('it is text, expected a list of polygons or run lengths')
    assert describe_mask(dict(size='48,64', counts='a'), 64, 48, 'no').startswith("its size is '48,64', but its image")
    assert describe_mask([dict(size=[48, 64], counts='a')], 64, 48, 'no') == (
        'it is a list of run lengths, expected one dict with size and counts'
    )
