import json
import re
import shutil

import pytest
import torch
from harness import LIBRARIES
from PIL import Image
from problems import only_training_problem as only_problem
from problems import training_problems as problems

from fcvit_mm.preflight import log
from fcvit_mm.preflight.checks import PreflightError, check_testing, check_training


@pytest.mark.parametrize('task', LIBRARIES)
def test_correct_data_have_no_problem(make_config, task):
    check_training(make_config(task)[0])


def test_all_problems_are_reported_in_one_message(make_config):
    cfg, data = make_config('detection', {'pretrained': 'gone.pth', 'model.roi_head.bbox_head.num_classes': 4})
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


def test_missing_data_root(make_config):
    cfg, _ = make_config('segmentation', {'train_dataloader.dataset.data_root': 'lost'})
    assert re.search('data_root .*/lost does not exist', only_problem(cfg))


def test_truncated_annotation_file(make_config):
    cfg, data = make_config('detection')
    path = data / 'annotations' / 'instances_train2017.json'
    path.write_text(path.read_text()[:-100])
    assert (
        f'{path} ({path.stat().st_size} bytes) is not a COCO annotation file, or is corrupt or truncated'
        in only_problem(cfg)
    )


def test_metainfo_classes_that_differ_from_the_categories(make_config):
    cfg, _ = make_config(
        'detection', {'train_dataloader.dataset.metainfo.classes': ['circle', 'cross', 'dog', 'star', 'x']}
    )
    assert 'metainfo.classes contains dog, x, which are not among the 5 categories' in only_problem(cfg)
    cfg.train_dataloader.dataset.metainfo.classes = ('cross', 'circle', 'square', 'star', 'triangle')
    assert 'is in another order than the categories' in only_problem(cfg)


def test_annotation_file_without_images(make_config):
    cfg, data = make_config('detection')
    path = data / 'annotations' / 'instances_val2017.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'images': []}))
    assert f'{path} lists no images' in only_problem(cfg)


@pytest.mark.parametrize(('here', 'there'), [('gr\u00fcn', 'gru\u0308n'), ('star', 'star '), ('star', 'Star')])
def test_class_folders_in_other_spaces_or_unicode_form(make_config, here, there):
    cfg, data = make_config('classification')
    (data / 'train' / 'star').rename(data / 'train' / here)
    (data / 'val' / 'star').rename(data / 'val' / there)
    assert (
        f'lacks {here} and adds {there} and writes {here!r} as {there!r}, in other spaces, capitals or Unicode form '
        '(NFC or NFD): its classes are'
    ) in only_problem(cfg)


def test_folder_without_images(make_config):
    cfg, data = make_config('classification')
    for path in (data / 'val').rglob('*.jpg'):
        path.unlink()
    assert re.search(f'val_dataloader: no images .* below {data}/val', only_problem(cfg))


def test_labels_above_the_number_of_classes(make_config):
    cfg, data = make_config('segmentation')
    path = sorted((data / 'annotations' / 'training').iterdir())[0]
    Image.new('L', (64, 64), 77).save(path)
    assert re.search(
        'segmentation maps in .* contain the labels 77, but the model has 6 classes .labels 1 to 6', only_problem(cfg)
    )


def test_missing_and_corrupt_segmentation_maps(make_config):
    cfg, data = make_config('segmentation')
    first, second, *_ = sorted((data / 'annotations' / 'training').iterdir())
    first.unlink()
    second.write_bytes(b'')
    found = problems(cfg)
    assert f'{second} is empty' in found[0] and '1 of 8 checked images have no segmentation map' in found[1]


@pytest.mark.parametrize('task', LIBRARIES)
def test_corrupt_images(make_config, task):
    cfg, data = make_config(task)
    path = next(path for path in sorted(data.rglob('*.jpg')) if 'train' in str(path.relative_to(data)))
    path.write_bytes(path.read_bytes()[:-50])
    assert f'train_dataloader: {path} cannot be decoded' in only_problem(cfg)


def test_number_of_further_corrupt_images(make_config):
    cfg, data = make_config('classification')
    for path in (data / 'train').rglob('*.jpg'):
        path.write_bytes(b'')
    found = problems(cfg)
    assert len(found) == 6 and '... and 3 more corrupt images' in found[-1]


def test_schedule_for_a_longer_training_is_a_warning(make_config, logged):
    check_training(make_config('classification')[0])
    assert any(
        text.startswith('param_scheduler: LinearLR (begin=0, end=5; training has 1 epochs), ') for text in logged
    )


def test_missing_train_dataloader(make_config):
    cfg, _ = make_config('classification', more='\ntrain_dataloader = None\n')
    assert only_problem(cfg) == 'the config has no train_dataloader'


def test_loader_without_a_data_set(make_config):
    cfg, _ = make_config('classification')
    del cfg.val_dataloader['dataset']
    assert only_problem(cfg) == 'val_dataloader: the data set is None: give a dict with its type and settings'


def test_wrapped_data_sets_are_checked(make_config):
    cfg, _ = make_config('classification')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {
        'type': 'RepeatDataset',
        'times': 2,
        'dataset': {'type': 'ConcatDataset', 'datasets': [inner, {**inner, 'data_root': 'lost'}]},
    }
    assert '/lost does not exist' in only_problem(cfg)


def test_concatenated_data_sets_with_different_classes(make_config):
    cfg, data = make_config('detection')
    inner = cfg.train_dataloader.dataset
    shutil.copy(data / 'annotations' / 'instances_train2017.json', data / 'annotations' / 'more.json')
    fewer = {**inner, 'ann_file': 'annotations/more.json', 'metainfo': {'classes': list(inner.metainfo.classes)[:2]}}
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [inner, fewer]}
    assert 'lacks square, star, triangle: its classes are circle, cross' in only_problem(cfg)


def test_missing_delete_key_is_explained(make_config):
    """ConcatDataset gets the keys of the data set in the base config."""
    cfg, _ = make_config('classification')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {**inner, 'type': 'ConcatDataset', 'datasets': [inner]}
    problem = only_problem(cfg)
    assert 'ConcatDataset cannot be built: ' in problem and 'unexpected keyword argument' in problem
    assert problem.endswith('a dict inherited from _base_ keeps its other keys unless it has _delete_=True')


def test_missing_annotation_file_of_the_test_evaluator(make_config, tmp_path):
    """tools/test.py reports it before it loads the checkpoint."""
    cfg, _ = make_config('detection')
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    cfg.test_evaluator = dict(cfg.test_evaluator, ann_file='lost.json')
    check_training(cfg)
    with pytest.raises(PreflightError, match='test_evaluator: ann_file lost.json does not exist: give'):
        check_testing(cfg, str(tmp_path / 'a.pth'))


def test_config_without_test_dataloader(make_config, tmp_path):
    cfg, _ = make_config('detection')
    torch.save({'state_dict': {}}, tmp_path / 'a.pth')
    cfg.test_dataloader = None
    with pytest.raises(PreflightError, match='the config has no test_dataloader. To test .* test_cfg = dict') as caught:
        check_testing(cfg, str(tmp_path / 'a.pth'))
    assert len(caught.value.problems) == 1


def test_time_of_the_checks_is_logged(make_config, monkeypatch):
    lines = []
    monkeypatch.setattr(log, 'print_log', lambda text, **options: lines.append(text))
    check_training(make_config('classification')[0])
    assert re.search(r'Preflight checks took [0-9.]+ s, of which [0-9.]+ s for building', lines[-1])


def test_unknown_type_of_data_set(make_config):
    cfg, _ = make_config('classification', {'train_dataloader.dataset.type': 'NoSuch'})
    assert 'NoSuch cannot be built' in only_problem(cfg)


def test_annotations_without_area(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][2].pop('area'))
    assert re.search(
        'instances_train2017.json: 1 of [0-9]+ annotations lack area .* correct or remove', only_problem(cfg)
    )


def test_annotations_with_an_undefined_category_are_a_warning(make_config, logged, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(
        data, 'train', lambda content: [each.update(category_id=77) for each in content['annotations'][:2]]
    )
    check_training(cfg)
    lines = [line for line in logged if 'never occur' not in line and 'param_scheduler' not in line]
    assert len(lines) == 1
    assert re.search(
        '2 of [0-9]+ annotations have a category_id that the file does not define .* mmdet skips', lines[0]
    )


def test_image_size_that_differs_from_the_annotation_file(make_config, change_annotations):
    cfg, data = make_config('detection')
    change_annotations(data, 'train', lambda content: content['images'][0].update(width=640))
    assert '1 of 4 checked images differ in size from their annotations' in only_problem(cfg)


def test_segmentation_map_of_another_size(make_config):
    cfg, data = make_config('segmentation')
    path = sorted((data / 'annotations' / 'training').iterdir())[0]
    Image.new('L', (32, 64), 1).save(path)
    assert f'{path} has size (32, 64), but its image has (64, 64)' in only_problem(cfg)
