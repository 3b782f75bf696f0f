"""Boxes, masks and categories in COCO format."""

import json
import re

import pytest
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data.detection import overlap

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


@pytest.mark.parametrize(
    'mask, problem',
    [
        ([1, 1, 9, 1, 9, 9], 'it is a flat list'),
        ([], 'it is missing or empty'),
        (None, 'it is missing or empty'),
        (dict(size=[1, 2], counts='x'), 'its size is [1, 2]'),
        ([[1e9, 2, 12, 2, 12, 12]], 'far outside its image'),
        ([[1, 2, None, 2, 12, 12]], 'points that are not numbers'),
    ],
)
def test_masks_that_training_cannot_load(make_config, change_annotations, mask, problem):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(segmentation=mask))
    found = only_problem(cfg)
    assert 'have a segmentation that cannot be loaded (ids 1)' in found and problem in found
    # Without a mask head, masks are not loaded.
    for step in cfg.train_dataloader.dataset.pipeline:
        step.pop('with_mask', None)
    cfg.model.roi_head.mask_head = None
    assert data_problems(cfg, ['train_dataloader']) == []


@pytest.mark.parametrize('mask, warning', [([[1, 1, 9, 9]], 'that mmdet skips'), ([SQUARE[0], [1, 1, 9, 9]], '')])
def test_invalid_masks_that_are_skipped_are_a_warning(make_config, logged, change_annotations, mask, warning):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(segmentation=mask))
    assert data_problems(cfg, ['train_dataloader']) == []
    lines = [line for line in logged if 'segmentation' in line]
    assert [warning in line and '(ids 1)' in line for line in lines] == [True] * bool(warning)


def test_boxes_that_are_not_finite(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(bbox=[2, 2, float('nan'), 9]))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert 'have a bbox that is not four finite numbers (ids 1): mmdet skips them' in logged[0]
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(bbox=[2, 2, float('inf'), 9]))
    assert 'have a bbox that is not four finite numbers (ids 1): correct or remove them' in only_problem(cfg)


def test_duplicate_objects(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(
        data,
        'train',
        lambda content: content['annotations'].extend(
            [dict(each, id=each['id'] + 1000) for each in content['annotations']]
        ),
    )
    assert data_problems(cfg, ['train_dataloader']) == []
    [line] = [line for line in logged if 'remove the repetitions' in line]
    assert re.search(r': (\d+) of \d+ checked objects have class and box of another one in the same image', line)


def test_masks_outside_of_their_boxes(make_config, logged, change_annotations):
    """Some tools write coordinates relative to the image size."""
    cfg, data = make_config('detection')

    def relative(content):
        for each in content['annotations']:
            each['segmentation'] = [[value / 64 for value in polygon] for polygon in each['segmentation']]

    change_annotations(data, 'train', relative)
    data_problems(cfg, ['train_dataloader'])
    [line] = [line for line in logged if 'do not touch the box of their object' in line]
    assert 'coordinates may be relative to the image' in line


def test_category_names_instead_of_ids(make_config, change_annotations):
    cfg, data = make_config('detection')

    def by_name(content):
        names = {each['id']: each['name'] for each in content['categories']}
        for each in content['annotations']:
            each['category_id'] = names[each['category_id']]

    change_annotations(data, 'train', by_name)
    assert re.search(r"category_id is a name, such as '\w+'.*: give the id of the category", only_problem(cfg))


@pytest.mark.parametrize(
    'change',
    [
        lambda each: each.update(category_id=each['category_id'] + 100),
        lambda each: each.update(area=0),
        lambda each: each.update(bbox=[value / 64 for value in each['bbox']]),
    ],
)
def test_all_objects_are_skipped(make_config, logged, change_annotations, change):
    cfg, data = make_config('detection')
    for split in ('train', 'val'):
        change_annotations(data, split, lambda content: [change(each) for each in content['annotations']])
    found = only_problem(cfg)
    assert re.search('skips all [0-9]+ samples', found) or 'no object is left' in found
    assert re.search(r'(\d+) of \1 annotations have .* mmdet skips them', logged[0])
    # Validation has no objects either.
    [found] = data_problems(cfg, ['val_dataloader'])
    assert re.search(r'\d+ images, but no object is left: CocoDataset skips', found)


@pytest.mark.parametrize('value', [1, '0'])
def test_all_objects_marked_as_crowd(make_config, logged, change_annotations, value):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: [each.update(iscrowd=value) for each in content['annotations']])
    found = only_problem(cfg)
    assert re.search(r'instances_train2017.json: (\d+) of \1 objects are ignored in training', found)
    assert 'nothing can be learned. Correct the annotations: mark only crowds' in found
    assert f'"iscrowd" has the values {value!r}, expected the numbers 0 and 1' in found
    # The objects of one image are left.
    change_annotations(
        data,
        'train',
        lambda content: [each.update(iscrowd=0) for each in content['annotations'] if each['image_id'] == 1],
    )
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('objects are ignored in training (marked as crowd or difficult): mark only' in line for line in logged)


@pytest.mark.parametrize('split, number', [('train', 1), ('val', 10**6)])
def test_some_objects_marked_as_crowd_are_not_reported(make_config, logged, change_annotations, split, number):
    cfg, data = make_config('detection')
    change_annotations(
        data, split, lambda content: [each.update(iscrowd=1) for each in content['annotations'][:number]]
    )
    assert data_problems(cfg, [f'{split}_dataloader']) == []
    assert not any('are ignored in training' in line for line in logged)


def test_validation_subset_without_objects(make_config, logged, change_annotations):
    cfg, data = make_config('detection', {'val_dataloader.dataset.indices': 1})
    first = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())['images'][0]['id']

    def empty(content):
        content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first]

    change_annotations(data, 'val', empty)
    assert data_problems(cfg, ['val_dataloader']) == []


def test_validation_on_classes_without_objects(make_config, logged, change_annotations):
    """The file has objects of other classes."""
    cfg, data = make_config('detection')
    change_annotations(data, 'val', lambda content: [each.update(category_id=1) for each in content['annotations']])
    cfg.val_dataloader.dataset.metainfo = dict(classes=('cross', 'square'))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    problems = data_problems(cfg, ['val_dataloader'])
    assert not any('no object is left' in problem for problem in problems), problems


def test_validation_file_without_annotations_is_a_warning(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'val', lambda content: content['annotations'].clear())
    assert data_problems(cfg, ['val_dataloader']) == []
    assert 'instances_val2017.json has no annotations' in logged[0]


def test_images_smaller_than_min_size(make_config, change_annotations):
    cfg, _ = make_config('detection', {'train_dataloader.dataset.filter_cfg.min_size': 65})
    assert (
        "CocoDataset skips all 8 samples (filter_cfg={'filter_empty_gt': True, 'min_size': 65}); 8 are smaller than "
        in (only_problem(cfg))
    )
    assert 'than min_size, the smallest 64 pixels. Check the annotations' in only_problem(cfg)


def test_classes_that_never_occur(make_config, logged, change_annotations):
    cfg, data = make_config('detection', more='\ntrain_dataloader["dataset"]["indices"] = None\n')

    def remove(content):
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] != 3]

    change_annotations(data, 'train', remove)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('1 of 5 classes never occur (square)' in line for line in logged)


def test_duplicate_annotation_ids(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][1].update(id=1))
    assert '1 ids of annotations occur more than once (1)' in only_problem(cfg)


@pytest.mark.parametrize('key', ['image_id', 'category_id'])
def test_ids_given_as_strings(make_config, change_annotations, key):
    cfg, data = make_config('detection')
    change_annotations(
        data, 'train', lambda content: [each.update({key: str(each[key])}) for each in content['annotations']]
    )
    found = only_problem(cfg)
    assert f': {key} ' in found and 'is given as str, but defined as ' in found and found.endswith('use one type')


def test_boxes_given_as_two_corners(make_config, logged, change_annotations):
    cfg, data = make_config('detection')

    def convert(content):
        for each in content['annotations']:
            x, y, width, height = each['bbox']
            each['bbox'] = [x, y, x + width, y + height]

    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == [] and logged == []
    for split in ('train', 'val'):
        change_annotations(data, split, convert)
    problems = data_problems(cfg, ['train_dataloader', 'val_dataloader'])
    assert len(problems) == 2 and all('bbox seems to be [x1, y1, x2, y2]' in problem for problem in problems)


def test_boxes_given_as_center_and_size(make_config, logged, change_annotations):
    cfg, data = make_config('detection')

    def convert(content):
        for each in content['annotations']:
            x, y, width, height = each['bbox']
            each['bbox'] = [x + width / 2, y + height / 2, width, height]

    path = change_annotations(data, 'train', convert)
    found = only_problem(cfg)
    assert found.startswith(f'train_dataloader: {path}: bbox seems to be [center x, center y, width, height] (such as ')
    assert found.endswith('and read in this form none does. COCO format is [x, y, width, height]: convert them')
    assert re.search(r'(\d+) of \1 checked polygons have another extent than the box of their object \(in ', logged[0])


def test_boxes_that_reach_beyond_the_image(make_config, logged, change_annotations):
    cfg, data = make_config('detection')

    def enlarge(content):
        for each in content['annotations']:
            each['bbox'] = [-500, -500, 1064, 1064]

    path = change_annotations(data, 'train', enlarge)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert re.fullmatch(
        rf'{path}: (\d+) of \1 checked boxes reach beyond their image \(such as \[-500, -500, 1064, 1064\] in '
        rf'{data / "train2017"}/\d+.jpg, which is 64x64\): correct them, unless only parts of the objects are in the '
        'images',
        logged[-1],
    )


def test_iou_of_boxes():
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 4, 4), (5, 5, 6, 6)) == 0 == overlap((0, 0, 0, 0), (0, 0, 0, 0))


def test_image_with_two_entries(make_config, logged, change_annotations):
    cfg, data = make_config('detection')

    def again(content):
        first = content['images'][0]
        content['images'].append(dict(first, id=999))
        for number, each in enumerate(content['annotations'][:]):
            if each['image_id'] == first['id']:
                content['annotations'].append(dict(each, id=1000 + number, image_id=999))

    cfg.train_dataloader.dataset.indices = None
    change_annotations(data, 'train', again)
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
    change_annotations(data, 'train', lambda content: content['annotations'].pop())
    assert data_problems(cfg, ['train_dataloader']) == []
    assert '1 images are listed several times with different objects' in logged[-1] and 'ids ' in logged[-1]


def test_annotation_of_an_unknown_image_without_a_box(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    lost = dict(id=999, image_id=999, category_id=1)
    change_annotations(data, 'train', lambda content: content['annotations'].append(lost))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert 'have an image_id that the file does not define (ids 999): mmdet skips them' in logged[0]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content['categories'][0].pop('name'), '1 of 5 categories lack id or name'),
        (
            lambda content: content['annotations'][0].update(area=None),
            'have an area that is not a finite number, such as None (ids 1)',
        ),
        (
            lambda content: [each.update(bbox=list(map(str, each['bbox']))) for each in content['annotations']],
            "have a bbox that is not four finite numbers, such as ['",
        ),
        (
            lambda content: content['categories'][1].update(id=1),
            "2 categories have the id 1 (names 'circle', 'cross'): give each category one id and one name",
        ),
        (
            lambda content: content['categories'].append(dict(id=99, name='circle')),
            "2 categories have the name 'circle' (ids 1, 99): remove 99, without annotations (Roboflow writes one for",
        ),
        (
            lambda content: (
                content['categories'].append(dict(id=99, name='circle')),
                content['annotations'].append(dict(content['annotations'][0], id=99, category_id=99)),
            ),
            "2 categories have the name 'circle' (ids 1, 99): give each category one id and one name, and its",
        ),
        (lambda content: content['categories'][0].update(name='Circle '), "'circle' is 'Circle ' in the file"),
        (
            lambda content: content['categories'][0].update(name={'en': 'circle'}),
            "1 of 5 categories have a list or dict as name, such as {'en': 'circle'}, expected text: correct them",
        ),
        (
            lambda content: [each.update(width=64.0) for each in content['images']],
            'its image has width 64.0 and height 64, expected integers',
        ),
    ],
)
def test_invalid_files_of_some_annotation_tools(make_config, change_annotations, change, message):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', change)
    assert message in only_problem(cfg)


def test_category_names_in_another_unicode_form(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['categories'][0].update(name='gru\u0308n'))
    names = cfg.train_dataloader.dataset.metainfo.classes
    cfg.train_dataloader.dataset.metainfo.classes = ('gr\u00fcn', *names[1:])
    assert "Unicode form or type: 'gr\u00fcn' is 'gru\u0308n' in the file: write the names as" in only_problem(cfg)


def test_palette_with_too_few_colors(make_config, logged):
    cfg, _ = make_config('detection')
    cfg.train_dataloader.dataset.metainfo.palette = [(255, 0, 0)]
    assert data_problems(cfg, ['train_dataloader']) == []
    assert 'metainfo.palette has 1 colors for 5 classes, so predictions cannot be drawn' in logged[-1]


def test_categories_numbered_from_0_and_annotations_from_1(make_config, change_annotations):
    cfg, data = make_config('detection')
    cfg.train_dataloader.dataset.indices = None
    change_annotations(
        data, 'train', lambda content: [each.update(id=each['id'] - 1) for each in content['categories']]
    )
    assert only_problem(cfg).endswith(
        'and none has the first one: categories are numbered from 0 (ids 14, 17, 19, ...), category_id one higher: '
        'give both the same numbers'
    )


def test_categories_numbered_from_1_and_annotations_from_0(make_config, change_annotations):
    cfg, data = make_config('detection')
    cfg.train_dataloader.dataset.indices = None
    change_annotations(
        data,
        'train',
        lambda content: [each.update(category_id=each['category_id'] - 1) for each in content['annotations']],
    )
    found = only_problem(cfg)
    assert 'and none has the last one: categories are numbered from 1 (ids ' in found
    assert found.endswith('category_id one lower: give both the same numbers')
