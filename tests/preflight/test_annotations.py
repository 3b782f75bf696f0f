import math

import pytest
from coco_files import GOOD, IMAGE, file_of

from fcvit_mm.preflight import annotations
from fcvit_mm.preflight.annotations import (
    FATAL,
    fatal_annotations,
    skip_reason,
    skipped_annotations,
)


def test_correct_annotations_have_no_problem(read_annotations):
    assert fatal_annotations(file_of()) == []
    assert fatal_annotations(dict(images=[IMAGE], categories=[])) == []
    dataset, api = read_annotations()
    assert skipped_annotations(api, dataset.data_list, dataset.cat_ids) == {}


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('category', dict(category_id=9)),
        ('empty', dict(bbox=[2, 2, 0, 10])),
        ('empty', dict(area=0)),
        ('outside', dict(bbox=[70, 2, 5, 5])),
        ('outside', dict(bbox=[-9, 2, 5, 5])),
        ('outside', dict(bbox=[70, 2, 5, 5], area=None)),  # None removes the key
        ('ignore', dict(ignore=1)),
        ('ignore', dict(ignore=1, bbox=None)),
        ('ignore', dict(ignore=1, bbox=[1, 2, 3])),
        # Of a class that the data set does not select.
        (None, dict(category_id=3)),
    ],
)
def test_skipped_annotations_have_a_reason(read_annotations, kind, changes):
    dataset, api = read_annotations(**changes)
    found = skipped_annotations(api, dataset.data_list, dataset.cat_ids)
    assert {key: [each['id'] for each in value] for key, value in found.items()} == ({kind: [2]} if kind else {})


def test_unknown_reason_for_skipping():
    assert skip_reason(GOOD, dict(width=64, height=48), [1]) == 'unknown'


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('box', dict(bbox=[1, 2, 3])),
        ('box', dict(bbox='1,2,3,4')),
        ('box', dict(bbox=[1, 2, math.nan, 4])),
        ('area', dict(area='much')),
    ],
)
def test_annotations_that_cannot_be_loaded(kind, changes):
    value = next(iter(changes.values()))
    assert fatal_annotations(file_of(**changes)) == [f'1 of 2 annotations {FATAL[kind]}, such as {value!r} (ids 2)']


def test_annotations_without_a_required_field():
    assert fatal_annotations(file_of(bbox=None, area=None)) == ['1 of 2 annotations lack bbox or area (ids 2)']
    content = file_of()
    content['annotations'][1]['id'] = None
    assert fatal_annotations(content) == ['1 of 2 annotations lack id (ids None)']


def test_duplicate_ids():
    content = dict(images=[IMAGE] * 2, categories=[dict(id=1, name='a')], annotations=[GOOD, GOOD])
    assert fatal_annotations(content) == [
        '1 ids of annotations occur more than once (1)',
        '1 ids of images occur more than once (1)',
    ]


def test_images_without_a_required_field():
    content = dict(images=[IMAGE, dict(id=2, file_name='2.jpg')], categories=[], annotations=[])
    assert fatal_annotations(content) == ['1 of 2 images lack width or height (ids 2)']


def test_boxes_given_as_two_corners():
    corners, boxes = [[10, 10, 60, 40], [40, 20, 62, 48]], [[10, 10, 50, 30], [40, 20, 22, 28]]
    sizes = [(64, 48)] * 2
    assert annotations.are_corners(corners, sizes)
    assert not annotations.are_corners(boxes, sizes)
    assert not annotations.are_corners([], [])
    # Boxes that are a little larger than their image.
    assert not annotations.are_corners([[0, 0, 66, 50], [-2, 0, 64, 48]], sizes)


def test_boxes_given_as_center_and_size():
    centers, sizes = [[54, 30, 20, 30], [50, 24, 28, 20], *[[10, 10, 8, 8]] * 8], [(64, 48)] * 10
    assert annotations.are_centers(centers, sizes)
    assert not annotations.are_centers(centers[:9], sizes[:9])  # too few
    boxes = [[44, 15, 20, 30], [36, 14, 28, 20], *[[6, 6, 8, 8]] * 8]
    assert not annotations.are_centers(boxes, sizes) and not annotations.are_centers([], [])
    # Boxes of which one is a little larger than its image, and one at its border.
    assert not annotations.are_centers([[54, 30, 20, 30], [50, 30, 20, 30], *[[0, 10, 8, 8]] * 8], sizes)
    assert not annotations.are_centers([[54, 30, 20, 30], [20, 24, 28, 20], *[[10, 10, 8, 8]] * 8], sizes)


@pytest.mark.parametrize(
    ('part', 'items', 'words'),
    [
        ('categories', {'cat': 1}, "'categories' is a dict, expected a list"),
        ('images', ['a.jpg', 'b.jpg'], "2 of 2 images are no dicts, such as 'a.jpg'"),
        (
            'annotations',
            [dict(category_id=[3])],
            '1 of 1 annotations have a list or dict as category_id, such as [3], ',
        ),
    ],
)
def test_parts_of_the_file_with_a_wrong_type(part, items, words):
    content = dict(images=[], annotations=[], categories=[])
    assert annotations.fatal_annotations(content) == []
    (line,) = annotations.fatal_annotations({**content, part: items})
    assert line.startswith(words)


def test_ids_of_a_wrong_type():
    assert annotations.other_type(['3', '4'], [3, 4]) == "'3' is given as str, but defined as 3"
    assert annotations.other_type(['3', '9'], [3, 4]) == '' == annotations.other_type([], [3])


def test_category_ids_shifted_by_one():
    assert annotations.shift_of([1, 2, 3], [0, 1, 2]) == 1 and annotations.shift_of([0, 1, 2], [1, 2, 3]) == -1
    for used, categories in (
        ([0, 1, 3], [0, 1, 2]),
        ([1, 2], [0, 1, 2]),
        ([1, 4], [0, 1, 2]),
        ([1], [0]),
        ([0, 1, 3], [1, 2, 3]),
    ):
        assert annotations.shift_of(used, categories) == 0
    assert annotations.shift_of(['1'], [0, 1]) == 0
