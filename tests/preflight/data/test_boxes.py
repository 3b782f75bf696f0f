"""Boxes and areas that can be read, but are improbable, are warnings."""

import pytest

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data import boxes


def change_each(change):
    def edit(content):
        for each in content['annotations']:
            each.update(change(each))

    return edit


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda each: dict(area=20 * each['area'] + 900), 'an area above that of the box (ids '),
        (lambda each: dict(area=each['area'] / 4096), 'an area far below that of the polygon (ids '),
    ],
)
def test_improbable_areas_are_reported(make_config, logged, change_annotations, change, words):
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', change_each(change))
    assert data_problems(cfg, ['train_dataloader']) == []
    (text,) = logged
    assert text.startswith(f'{path}: ') and words in text and ', expected about ' in text
    assert 'COCO metrics divide objects into small, medium and large ones by area' in text


@pytest.mark.parametrize(
    'change',
    [
        lambda each: {},
        lambda each: dict(area=each['bbox'][2] * each['bbox'][3]),  # as many annotation tools write it
        lambda each: dict(area=each['area'] * 1.05),
        lambda each: dict(area=each['area'] if each['id'] > 1 else 9e5),  # only one of many
    ],
)
def test_usual_areas_are_not_reported(make_config, logged, change_annotations, change):
    cfg, data = make_config('detection')

    def several(content):
        first = content['annotations']
        content['annotations'] = [
            dict(each, id=len(first) * part + each['id'], bbox=[*each['bbox'][:3], each['bbox'][3] + part / 100])
            for part in range(4)
            for each in first
        ]

    change_annotations(data, 'train', several)
    change_annotations(data, 'train', change_each(change))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert not any(' area ' in text for text in logged)


def test_area_of_a_polygon():
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    assert boxes.polygon_area([square]) == 100 == boxes.polygon_area([square[::-1]])
    for other in (None, [], [[]], [square, square], dict(size=[4, 4], counts='x'), [[1, 2, None, 3, 4, 5]], [[1] * 7]):
        assert boxes.polygon_area(other) == 0


def test_boxes_for_smaller_images_are_reported(make_config, logged, change_annotations, monkeypatch):
    monkeypatch.setattr(boxes, 'ENOUGH', 4)
    cfg, data = make_config('detection')
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []

    def halve(each):
        return dict(
            bbox=[value / 2 for value in each['bbox']],
            segmentation=[[value / 2 for value in polygon] for polygon in each['segmentation']],
            area=each['area'] / 4,
        )

    path = change_annotations(data, 'train', change_each(halve))
    assert data_problems(cfg, ['train_dataloader']) == []
    (text,) = logged
    assert text.startswith(f'{path}: in all ') and 'If they were drawn on smaller images, scale them' in text
    assert '% of the width and ' in text
