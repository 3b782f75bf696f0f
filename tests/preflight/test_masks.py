import math

import numpy as np
import pytest
from coco_files import SQUARE

from fcvit_mm.preflight import masks as checked_masks
from fcvit_mm.preflight.limits import TimeLimit
from fcvit_mm.preflight.masks import (
    Mask,
    annotation_ids,
    ask_loading_step,
    ask_metric,
    check_masks,
    far_words,
    mask_kind,
    mask_words,
    run_lengths,
)


def test_run_lengths_that_do_not_fill_their_image():
    said = mask_words(dict(size=[48, 64], counts=[10, 20]), 64, 48, 'what a library says')
    assert said == 'its run lengths cover 30 pixels, but its size [48, 64] (height, width) has 3072'


RUNS = dict(size=[48, 64], counts='PP3')


@pytest.mark.parametrize('seed', range(4))
def test_compressed_run_lengths_are_those_of_pycocotools(seed):
    from pycocotools import mask as masks

    drawn = np.asfortranarray(np.random.default_rng(seed).random((48, 64)) < 0.02 + 0.3 * seed, np.uint8)
    drawn[:, 10:60] = 0  # a long one, too
    changes = np.flatnonzero(np.diff(drawn.ravel('F'), prepend=0))
    expected = np.diff(changes, prepend=0, append=drawn.size)
    text = masks.encode(drawn)['counts']
    assert run_lengths(text) == run_lengths(text.decode()) == expected.tolist()


@pytest.mark.parametrize('text', ['', 'PPYo', 'Q', 'PP3 ', 'PP3\x7f', 'PPYo\u00e9', 'O', 'o' * 10**6])
def test_text_that_is_no_run_lengths(text):
    said = mask_words(dict(size=[48, 64], counts=text), 64, 48, 'what a library says')
    assert said == "its compressed run lengths are empty, truncated or not in COCO's format"


@pytest.mark.parametrize('counts', ['1', 'PP35', b'PPYo1'])
def test_compressed_run_lengths_that_do_not_fill_their_image(counts):
    said = mask_words(dict(size=[48, 64], counts=counts), 64, 48, '')
    assert said.startswith('its run lengths cover ')
    assert said.endswith(' pixels, but its size [48, 64] (height, width) has 3072')


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
def test_which_masks_libraries_are_asked_about(mask, kind):
    assert mask_kind(mask, 64, 48) == kind


def test_unusual_masks_come_first_and_far_ones_are_never_drawn(monkeypatch):
    monkeypatch.setattr(checked_masks, 'USUAL_ASKED', 2)
    asked = []

    def ask(mask):
        asked.append(mask.owner)
        return 'no' if mask.owner in (3, 5) else ''

    masks = [Mask(SQUARE, 64, 48, number, 1) for number in range(7)]
    masks[5] = masks[5]._replace(segmentation=[[]])
    masks[4] = masks[4]._replace(segmentation=[[1e9, 2, 12, 2, 12, 12]])
    masks[3] = masks[3]._replace(segmentation=[[-9, 2, 12, 2, 12, 12]])
    masks[2] = masks[2]._replace(segmentation=dict(size=[4, 4], counts='x'))
    found, beyond = check_masks(masks, ask, TimeLimit(), 'a.json')
    assert asked == [5, 3, 0, 6] and [each.owner for each in beyond] == [3]
    assert {said: [each.owner for each in faulty] for said, faulty in found.items()} == {
        'it has points far outside its image, or points that are not numbers': [4],
        'its size is [4, 4], but its image has [48, 64] (height, width)': [2],
        'no': [5, 3],
    }


def test_masks_of_one_kind_are_one_line():
    points = [[[[number, 2], [3, 4], [5, 6]]] for number in range(4)]
    sizes = [dict(size=[number, 4], counts='x') for number in range(4)]
    masks = [Mask(each, 64, 48, number, 1) for number, each in enumerate([*points, *sizes])]
    found, _ = check_masks(masks, lambda mask: '', TimeLimit(), 'a.json')
    assert {said: [each.owner for each in faulty] for said, faulty in found.items()} == {
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
    ],
)
def test_what_the_libraries_say(read_annotations, mask, step, metric):
    from mmdet.datasets.transforms import LoadAnnotations

    _, api = read_annotations(segmentation=mask)
    instance = dict(bbox=[2, 2, 12, 12], bbox_label=0, ignore_flag=0)
    if mask:
        instance['mask'] = mask  # as mmdet does
    said = ask_loading_step(LoadAnnotations(with_bbox=True, with_mask=True))(Mask(mask, 64, 48, instance, 1))
    assert step in said and bool(step) == bool(said)
    said = ask_metric(api)(Mask(mask, 64, 48, api.anns[2], 1))
    assert metric in said and bool(metric) == bool(said) and not said.endswith('.')  # part of a sentence


def test_steps_that_load_no_objects_read_no_segmentations():
    from mmdet.datasets.transforms import LoadEmptyAnnotations

    step = LoadEmptyAnnotations(with_mask=True)
    instance = dict(bbox=[2, 2, 12, 12], bbox_label=0, ignore_flag=0, mask=SQUARE)
    assert ask_loading_step(step)(Mask(SQUARE, 64, 48, instance, 1)) == ''


def test_words_are_the_librarys_where_no_rule_has_any():
    assert mask_words(SQUARE, 64, 48, 'E: x') == 'E: x' and mask_words(RUNS, 64, 48, 'E: x') == 'E: x'


def test_ids_of_instances(read_annotations):
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
def test_words_for_points_that_cannot_be_drawn(mask, words):
    assert mask_kind(mask, 64, 48) == 'far' and far_words(mask).startswith(words)


def test_words_for_segmentations_of_another_kind():
    assert mask_words('[[1, 2]]', 64, 48, 'no').startswith('it is text, expected a list of polygons or run lengths')
    assert mask_words([dict(size=[48, 64], counts='a')], 64, 48, 'no') == (
        'it is a list of run lengths, expected one dict with size and counts'
    )
