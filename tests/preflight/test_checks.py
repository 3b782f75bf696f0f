import json
import re
import shutil

import pytest
import torch
from harness import LIBRARIES
from PIL import Image
from problems import only_training_problem as only_problem
from problems import training_problems as problems

from fcvit_mm.preflight import remarks
from fcvit_mm.preflight.checks import PreflightError, check_testing, check_training


@pytest.mark.parametrize('task', LIBRARIES)
def test_good_data(own, task):
    check_training(own(task)[0])


def test_all_problems_at_once(own):
    cfg, data = own('detection', {'pretrained': 'gone.pth', 'model.roi_head.bbox_head.num_classes': 4})
    (data / 'annotations' / 'instances_val2017.json').unlink()
    shutil.rmtree(data / 'train2017')
    found = problems(cfg)
    with pytest.raises(PreflightError, match=f'{len(found)} problems found before the start:\n  - '):
        check_training(cfg)
    text = '\n'.join(found)
    assert 'gone.pth does not exist' in text and '--cfg-options pretrained=None' in text
    assert re.search('val_dataloader: annotation file .*instances_val2017.json does not exist', text)
    assert re.search('train_dataloader: folder .*train2017/? does not exist', text)
    assert 'model.roi_head.bbox_head.num_classes is 4, but the data set has 5 classes' in text


def test_missing_root(own):
    cfg, _ = own('segmentation', {'train_dataloader.dataset.data_root': 'lost'})
    assert re.search('data_root .*/lost does not exist', only_problem(cfg))


def test_truncated_annotations(own):
    cfg, data = own('detection')
    path = data / 'annotations' / 'instances_train2017.json'
    path.write_text(path.read_text()[:-100])
    assert (
        f'{path} ({path.stat().st_size} bytes) is not a COCO annotation file, or is corrupt or truncated'
        in only_problem(cfg)
    )


def test_classes_of_the_metainfo_and_of_the_annotations(own):
    cfg, _ = own('detection', {'train_dataloader.dataset.metainfo.classes': ['circle', 'cross', 'dog', 'star', 'x']})
    assert 'metainfo.classes contains dog, x, which are not among the 5 categories' in only_problem(cfg)
    cfg.train_dataloader.dataset.metainfo.classes = ('cross', 'circle', 'square', 'star', 'triangle')
    assert 'is in another order than the categories' in only_problem(cfg)


def test_annotations_without_images(own):
    cfg, data = own('detection')
    path = data / 'annotations' / 'instances_val2017.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'images': []}))
    assert f'{path} lists no images' in only_problem(cfg)


def test_folders_in_another_unicode_form(own):
    cfg, data = own('classification')
    (data / 'train' / 'star').rename(data / 'train' / 'gr\u00fcn')
    (data / 'val' / 'star').rename(data / 'val' / 'gru\u0308n')
    assert (
        'lacks gr\u00fcn and adds gru\u0308n and writes the same characters in another Unicode form (NFC or NFD): its '
        'classes are'
    ) in only_problem(cfg)


def test_no_images(own):
    cfg, data = own('classification')
    for path in (data / 'val').rglob('*.jpg'):
        path.unlink()
    assert re.search(f'val_dataloader: no images .* below {data}/val', only_problem(cfg))


def test_labels_that_the_model_does_not_know(own):
    cfg, data = own('segmentation')
    path = sorted((data / 'annotations' / 'training').iterdir())[0]
    Image.new('L', (64, 64), 77).save(path)
    assert re.search(
        'segmentation maps in .* contain the labels 77, but the model has 6 classes .labels 1 to 6', only_problem(cfg)
    )


def test_missing_and_corrupt_maps(own):
    cfg, data = own('segmentation')
    first, second, *_ = sorted((data / 'annotations' / 'training').iterdir())
    first.unlink()
    second.write_bytes(b'')
    found = problems(cfg)
    assert f'{second} is empty' in found[0] and '1 of 8 checked images have no segmentation map' in found[1]


@pytest.mark.parametrize('task', LIBRARIES)
def test_corrupt_images(own, task):
    cfg, data = own(task)
    path = next(path for path in sorted(data.rglob('*.jpg')) if 'train' in str(path.relative_to(data)))
    path.write_bytes(path.read_bytes()[:-50])
    assert f'train_dataloader: {path} cannot be decoded' in only_problem(cfg)


def test_many_corrupt_images_are_counted(own):
    cfg, data = own('classification')
    for path in (data / 'train').rglob('*.jpg'):
        path.write_bytes(b'')
    found = problems(cfg)
    assert len(found) == 6 and '... and 3 more corrupt images' in found[-1]


def test_schedules_for_a_longer_training(own, said):
    check_training(own('classification')[0])
    assert any(text.startswith('param_scheduler: LinearLR (begin=0, end=5; training has 1 epochs), ') for text in said)


def test_loader_that_is_missing(own):
    cfg, _ = own('classification', more='\ntrain_dataloader = None\n')
    assert only_problem(cfg) == 'the config has no train_dataloader'


def test_loader_without_a_data_set(own):
    cfg, _ = own('classification')
    del cfg.val_dataloader['dataset']
    assert only_problem(cfg) == 'val_dataloader: the data set is None: give a dict with its type and settings'


@pytest.mark.parametrize('empty', ['', None])
def test_annotation_file_without_a_name(own, empty):
    cfg, _ = own('detection', {'train_dataloader.dataset.ann_file': empty})
    assert f'CocoDataset has ann_file={empty!r}, expected the path of a COCO annotation file' in only_problem(cfg)


def test_wrapped_data_sets_are_looked_into(own):
    cfg, _ = own('classification')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {
        'type': 'RepeatDataset',
        'times': 2,
        'dataset': {'type': 'ConcatDataset', 'datasets': [inner, {**inner, 'data_root': 'lost'}]},
    }
    assert '/lost does not exist' in only_problem(cfg)


def test_joined_data_sets_with_other_classes_are_one_problem(own):
    cfg, data = own('detection')
    inner = cfg.train_dataloader.dataset
    shutil.copy(data / 'annotations' / 'instances_train2017.json', data / 'annotations' / 'more.json')
    fewer = {**inner, 'ann_file': 'annotations/more.json', 'metainfo': {'classes': list(inner.metainfo.classes)[:2]}}
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [inner, fewer]}
    assert 'lacks square, star, triangle: its classes are circle, cross' in only_problem(cfg)


def test_dicts_that_keep_inherited_keys(own):
    """ConcatDataset with the keys of the data set that the base config has."""
    cfg, _ = own('classification')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {**inner, 'type': 'ConcatDataset', 'datasets': [inner]}
    problem = only_problem(cfg)
    assert 'ConcatDataset cannot be built: ' in problem and 'unexpected keyword argument' in problem
    assert problem.endswith('a dict inherited from _base_ keeps its other keys unless it has _delete_=True')


def test_evaluator_of_the_test_set(own, tmp_path):
    """By tools/test.py, before it loads anything."""
    cfg, _ = own('detection')
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    cfg.test_evaluator = dict(cfg.test_evaluator, ann_file='lost.json')
    check_training(cfg)
    with pytest.raises(PreflightError, match='test_evaluator: ann_file lost.json does not exist: give'):
        check_testing(cfg, str(tmp_path / 'a.pth'))


def test_time_is_said(own, monkeypatch):
    lines = []
    monkeypatch.setattr(remarks, 'print_log', lambda text, **options: lines.append(text))
    check_training(own('classification')[0])
    assert re.search(r'Preflight checks took [0-9.]+ s, of which [0-9.]+ s for building', lines[-1])


def test_unknown_data_set(own):
    cfg, _ = own('classification', {'train_dataloader.dataset.type': 'NoSuch'})
    assert 'NoSuch cannot be built' in only_problem(cfg)


def test_annotations_that_would_end_training(own, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][2].pop('area'))
    assert re.search(
        'instances_train2017.json: 1 of [0-9]+ annotations lack area .* correct or remove', only_problem(cfg)
    )


def test_annotations_that_are_skipped_are_a_warning(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(
        data, 'train', lambda content: [each.update(category_id=77) for each in content['annotations'][:2]]
    )
    check_training(cfg)
    lines = [line for line in said if 'never occur' not in line and 'param_scheduler' not in line]
    assert len(lines) == 1
    assert re.search(
        '2 of [0-9]+ annotations have a category_id that the file does not define .* mmdet skips', lines[0]
    )


def test_annotations_of_other_images(own, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['images'][0].update(width=640))
    assert '1 of 4 checked images differ in size from their annotations' in only_problem(cfg)


def test_map_of_another_image(own):
    cfg, data = own('segmentation')
    path = sorted((data / 'annotations' / 'training').iterdir())[0]
    Image.new('L', (32, 64), 1).save(path)
    assert f'{path} has size (32, 64), but its image has (64, 64)' in only_problem(cfg)
