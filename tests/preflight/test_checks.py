import json
import re
import shutil

import pytest
import torch
from harness import LIBRARIES
from PIL import Image
from problems import only_training_problem as only_problem
from problems import training_problems as problems

from fcvit_mm.apis.load import build_model
from fcvit_mm.preflight import limits
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


def test_classes_of_a_classifier(own):
    cfg, data = own('classification', {'model.head.num_classes': 3})
    found = problems(cfg)
    assert any('model.head.num_classes is 3, but the data set has 5 classes (circle, cross' in line for line in found)
    cfg.model.head.num_classes = 5
    cfg.data_preprocessor.num_classes = 1000
    assert 'data_preprocessor.num_classes is 1000' in problems(cfg)[0]
    cfg.data_preprocessor.num_classes = 5
    cfg.train_dataloader.dataset.type = 'ImageNet'
    assert 'has 5 folders (circle' in '\n'.join(problems(cfg)) and 'has 1000 classes' in '\n'.join(problems(cfg))


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


def test_classes_of_the_checkpoint_in_another_order(own, said, tmp_path):
    """Labels are numbers: the same names must have those of the training."""
    cfg, data = own('classification')
    classes = sorted(path.name for path in (data / 'val').iterdir())
    path, weights = str(tmp_path / 'a.pth'), build_model(cfg).state_dict()

    def write(names, **content):
        meta = dict(dataset_meta=dict(classes=names), epoch=1, iter=2)
        torch.save(dict(state_dict=weights, meta=meta, **content), path)

    for names in (classes, [f'class {name}' for name in classes], classes[:3]):
        write(names)
        check_testing(cfg, path)
    assert len(said) == 1 and 'predictions are assigned by number, not by name' in said[0]
    write(classes[::-1])
    with pytest.raises(PreflightError, match='numbers its classes differently') as error:
        check_testing(cfg, path)
    assert f'{classes[0]!r} has label 0, but 4 in the checkpoint' in str(error.value)
    write(classes[::-1], optimizer={})
    cfg.resume, cfg.load_from = True, path
    assert all('numbers its classes differently' in problem for problem in problems(cfg))


def test_schedules_for_a_longer_training(own, said):
    check_training(own('classification')[0])
    assert any(text.startswith('param_scheduler: LinearLR (begin=0, end=5; training has 1 epochs), ') for text in said)


def test_loader_that_is_missing(own):
    cfg, _ = own('classification', more='\ntrain_dataloader = None\n')
    assert only_problem(cfg) == 'the config has no train_dataloader'


def test_wrapped_data_sets_are_looked_into(own):
    cfg, _ = own('classification')
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {
        'type': 'RepeatDataset',
        'times': 2,
        'dataset': {'type': 'ConcatDataset', 'datasets': [inner, {**inner, 'data_root': 'lost'}]},
    }
    assert '/lost does not exist' in only_problem(cfg)


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
    monkeypatch.setattr(limits, 'print_log', lambda text, **options: lines.append(text))
    check_training(own('classification')[0])
    assert re.search(r'Preflight checks took [0-9.]+ s, of which [0-9.]+ s for building', lines[-1])


def test_unknown_data_set(own):
    cfg, _ = own('classification', {'train_dataloader.dataset.type': 'NoSuch'})
    assert 'NoSuch cannot be built' in only_problem(cfg)


def test_annotations_that_would_end_training(own, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][2].pop('area'))
    assert re.search(
        'instances_train2017.json: 1 of [0-9]+ annotations lack id, .* correct or remove', only_problem(cfg)
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


def test_labels_that_are_shifted_in_validation_alone(own, said):
    cfg, data = own('segmentation')
    for path in (data / 'annotations').rglob('*.png'):
        with Image.open(path) as image:
            image.point(lambda label: min(label, 5)).save(path)
    check_training(cfg)
    dataset = cfg.train_dataloader.dataset
    dataset.reduce_zero_label = dataset.pipeline[1].reduce_zero_label = False
    found = only_problem(cfg)
    assert re.search(
        r'val_dataloader \(.*\) has reduce_zero_label=True, train_dataloader \(.*\) False: the same label', found
    )
    # Files elsewhere may number the classes in their own way.
    shutil.copytree(data, data.parent / 'other')
    cfg.val_dataloader.dataset.data_root = str(data.parent / 'other')
    said.clear()
    check_training(cfg)
    assert any('the same reduce_zero_label, unless their segmentation maps number' in line for line in said)
    # These do: 6 is one of 6 classes only where they are numbered from 1.
    for path in (data.parent / 'other' / 'annotations').rglob('*.png'):
        with Image.open(path) as image:
            image.point(lambda label: label + 1).save(path)
    said.clear()
    check_training(cfg)
    assert not any('reduce_zero_label' in line for line in said)
