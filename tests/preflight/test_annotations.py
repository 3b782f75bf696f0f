import json
import math

import numpy as np
import pytest

from fcvit_mm.preflight import annotations
from fcvit_mm.preflight.annotations import (
    FATAL,
    Mask,
    annotation_ids,
    ask_loading_step,
    ask_metric,
    check_masks,
    far_words,
    fatal_annotations,
    mask_kind,
    mask_words,
    run_lengths,
    skip_reason,
    skipped_annotations,
)
from fcvit_mm.preflight.limits import TimeLimit

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
GOOD = dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 10, 10], area=100, iscrowd=0, segmentation=SQUARE)
IMAGE = dict(id=1, img_id=1, file_name='1.jpg', width=64, height=48)


def file_of(**changes):
    other = {key: value for key, value in dict(GOOD, id=2, **changes).items() if value is not None}
    return dict(images=[IMAGE], categories=[dict(id=1, name='a'), dict(id=3, name='b')], annotations=[GOOD, other])


@pytest.fixture
def read(tmp_path):
    """Return a file as pycocotools reads it, with one changed annotation, and mmdet's data set of it."""
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset

    from fcvit_mm.preflight.data.dataset import load_list

    def get(**changes):
        (tmp_path / 'a.json').write_text(json.dumps(file_of(**changes)))
        dataset = CocoDataset(
            ann_file=str(tmp_path / 'a.json'),
            data_prefix=dict(img=''),
            metainfo=dict(classes=('a',)),
            pipeline=[],
            lazy_init=True,
        )
        everything, api = load_list(dataset, TimeLimit())
        assert everything == dataset.data_list and len(everything) == 1
        return dataset, api

    return get


def test_good_annotations(read):
    assert fatal_annotations(file_of()) == []
    assert fatal_annotations(dict(images=[IMAGE], categories=[])) == []
    dataset, api = read()
    assert skipped_annotations(api, dataset.data_list, dataset.cat_ids) == {}


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('category', dict(category_id=9)),
        ('empty', dict(bbox=[2, 2, 0, 10])),
        ('empty', dict(area=0)),
        ('outside', dict(bbox=[70, 2, 5, 5])),
        ('outside', dict(bbox=[-9, 2, 5, 5])),
        ('ignore', dict(ignore=1)),
        # Of a class that is not wanted: no fault.
        (None, dict(category_id=3)),
    ],
)
def test_what_the_data_set_skips_has_a_reason(read, kind, changes):
    dataset, api = read(**changes)
    found = skipped_annotations(api, dataset.data_list, dataset.cat_ids)
    assert {key: [each['id'] for each in value] for key, value in found.items()} == ({kind: [2]} if kind else {})


def test_what_is_skipped_for_a_reason_of_its_own():
    assert skip_reason(GOOD, dict(width=64, height=48), [1]) == 'unknown'


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('keys', dict(bbox=None)),
        ('keys', dict(area=None)),
        ('box', dict(bbox=[1, 2, 3])),
        ('box', dict(bbox='1,2,3,4')),
        ('box', dict(bbox=[1, 2, math.nan, 4])),
        ('area', dict(area='much')),
    ],
)
def test_what_cannot_be_loaded(kind, changes):
    assert fatal_annotations(file_of(**changes)) == [f'1 of 2 annotations {FATAL[kind]} (ids 2)']


def test_ids_that_are_not_unique():
    content = dict(images=[IMAGE] * 2, categories=[dict(id=1, name='a')], annotations=[GOOD, GOOD])
    assert fatal_annotations(content) == [
        '1 ids of annotations occur more than once (1)',
        '1 ids of images occur more than once (1)',
    ]


def test_images_that_lack_a_field():
    content = dict(images=[IMAGE, dict(id=2, file_name='2.jpg')], categories=[], annotations=[])
    assert fatal_annotations(content) == ['1 of 2 images lack id, file_name, width or height (ids 2)']


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
    monkeypatch.setattr(annotations, 'USUAL_ASKED', 2)
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
def test_what_the_libraries_say(read, mask, step, metric):
    from mmdet.datasets.transforms import LoadAnnotations

    _, api = read(segmentation=mask)
    instance = dict(bbox=[2, 2, 12, 12], bbox_label=0, ignore_flag=0)
    if mask:
        instance['mask'] = mask  # as mmdet does
    said = ask_loading_step(LoadAnnotations(with_bbox=True, with_mask=True))(Mask(mask, 64, 48, instance, 1))
    assert step in said and bool(step) == bool(said)
    said = ask_metric(api)(Mask(mask, 64, 48, api.anns[2], 1))
    assert metric in said and bool(metric) == bool(said)


def test_words_are_the_librarys_where_no_rule_has_any():
    assert mask_words(SQUARE, 64, 48, 'E: x') == 'E: x' and mask_words(RUNS, 64, 48, 'E: x') == 'E: x'


def test_ids_of_instances(read):
    _, api = read(bbox=[3, 3, 9, 9])
    masks = [Mask(None, 64, 48, dict(bbox=[3, 3, 12, 12]), 1), Mask(None, 64, 48, dict(bbox=[0, 0, 1, 1]), 1)]
    assert annotation_ids(api, masks) == [2, 'of image 1']


def test_boxes_that_are_corners():
    corners, boxes = [[10, 10, 60, 40], [40, 20, 62, 48]], [[10, 10, 50, 30], [40, 20, 22, 28]]
    sizes = [(64, 48)] * 2
    assert annotations.are_corners(corners, sizes)
    assert not annotations.are_corners(boxes, sizes)
    assert not annotations.are_corners([], [])
    # Boxes that are a little larger than their image.
    assert not annotations.are_corners([[0, 0, 66, 50], [-2, 0, 64, 48]], sizes)


def test_ids_of_another_type_are_described():
    assert annotations.other_type(['3', '4'], [3, 4]) == "'3' is given as str, but defined as 3"
    assert annotations.other_type(['3', '9'], [3, 4]) == '' == annotations.other_type([], [3])


def test_categories_that_are_shifted():
    assert annotations.are_shifted([1, 2, 3], [0, 1, 2])
    for used, categories in (([0, 1, 3], [0, 1, 2]), ([1, 2], [0, 1, 2]), ([1, 4], [0, 1, 2]), ([1], [0])):
        assert not annotations.are_shifted(used, categories)
    assert not annotations.are_shifted(['1'], [0, 1])


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
