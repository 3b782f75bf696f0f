import re
import shutil

import pytest
import torch
from PIL import Image
from problems import only_training_problem as only_problem
from problems import training_problems as problems

from fcvit_mm.apis.load import build_model
from fcvit_mm.preflight.checks import PreflightError, check_testing, check_training, data_problems
from fcvit_mm.preflight.classes import class_number_problems, class_numbers, learned_classes


def test_number_of_classes_that_differs_from_the_data_set(make_config):
    cfg, data = make_config('classification', {'model.head.num_classes': 3})
    (found,) = [problem for problem in problems(cfg) if 'num_classes' in problem]
    assert found.startswith(
        'train_dataloader, val_dataloader: model.head.num_classes is 3, but the data set has 5 classes (circle, cross'
    )
    cfg.model.head.num_classes = 5
    cfg.data_preprocessor.num_classes = 5
    cfg.train_dataloader.dataset.type = 'ImageNet'
    found = '\n'.join(problems(cfg))
    assert 'has 5 folders (circle' in found and 'has 1000 classes' in found
    folder = str(data / 'train')
    assert f"replace it by dict(type='CustomDataset', data_root={folder!r}, pipeline=...)" in found
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset = dict(type='CustomDataset', data_root=folder, pipeline=pipeline)
    check_training(cfg)


@pytest.mark.parametrize(
    'options, place',
    [
        ({}, 'data_preprocessor'),  # Mixup and CutMix in model.train_cfg
        ({'model.train_cfg': None}, None),
        ({'model.train_cfg': None, 'data_preprocessor.to_onehot': True}, 'data_preprocessor'),
        (
            {'model.data_preprocessor': dict(num_classes=1000), 'data_preprocessor.num_classes': None},
            'model.data_preprocessor',
        ),
    ],
)
def test_number_of_classes_of_one_hot_labels(make_config, options, place):
    """Without one-hot labels, the preprocessor does not read the number, which configs for ImageNet set to 1000."""
    cfg, _ = make_config('classification', {'data_preprocessor.num_classes': 1000, **options})
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == bool(place)
    assert not found or f'{place}.num_classes is 1000, but the data set has 5 classes' in found[0]


def test_classes_of_mask2former(make_config):
    """mmdet's heads for masks and panoptic segmentation have two numbers of classes."""
    head, fusion = (dict(num_things_classes=things, num_stuff_classes=0) for things in (5, 80))
    cfg, _ = make_config('detection', {'model.panoptic_head': head, 'model.panoptic_fusion_head': fusion})
    (problem,) = data_problems(cfg, ['train_dataloader'])
    assert 'model.panoptic_fusion_head.num_things_classes is 80, but the data set has 5 classes (circle' in problem
    cfg.model.panoptic_fusion_head.num_things_classes = 5
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.model.panoptic_head.num_stuff_classes = 53
    found = '\n'.join(data_problems(cfg, ['train_dataloader']))
    assert 'num_stuff_classes is 53, but the data set has 0 stuff classes: --cfg-options' in found


def test_classes_of_things_and_stuff():
    """Heads for boxes and masks learn the things of a panoptic data set; HTC's semantic head learns other maps."""
    roi_head = dict(bbox_head=[dict(num_classes=2), dict(num_classes=3)], semantic_head=dict(num_classes=183))
    model = dict(roi_head=roi_head, semantic_head=dict(num_things_classes=2, num_stuff_classes=1))
    numbers = list(class_numbers(dict(model=model)))
    assert learned_classes(numbers) == 4 and learned_classes([]) is None
    metainfo = dict(thing_classes=('cat', 'dog'), stuff_classes=('sky',))
    assert class_number_problems(('cat', 'dog', 'sky'), metainfo, numbers, {}) == [
        'model.roi_head.bbox_head.1.num_classes is 3, but the data set has 2 thing classes (cat, dog): '
        '--cfg-options model.roi_head.bbox_head.1.num_classes=2, or correct metainfo.classes of the data set'
    ]
    (problem,) = class_number_problems(('sky', 'cat', 'dog'), metainfo, numbers, {})
    assert 'metainfo.classes (sky, cat, dog) is not thing_classes (cat, dog) followed by stuff_classes (sky)' in problem


def test_numbers_of_classes_of_several_heads_are_one_problem():
    heads = dict(bbox_head=[dict(num_classes=80), dict(num_classes=80), dict(num_classes=2)])
    numbers = list(class_numbers(dict(model=dict(roi_head=heads))))
    assert class_number_problems(('cat', 'dog'), {}, numbers, {}) == [
        'model.roi_head.bbox_head.0.num_classes is 80, model.roi_head.bbox_head.1.num_classes is 80, but the data set '
        'has 2 classes (cat, dog): --cfg-options model.roi_head.bbox_head.0.num_classes=2 '
        'model.roi_head.bbox_head.1.num_classes=2, or correct metainfo.classes of the data set'
    ]
    (problem,) = class_number_problems(('cat', 'dog', 'cow'), {}, numbers[2:], {})
    assert problem == (
        'model.roi_head.bbox_head.2.num_classes is 2, but the data set has 3 classes (cat, dog, cow): give the data '
        'set metainfo=dict(classes=...) with 2 names, or --cfg-options model.roi_head.bbox_head.2.num_classes=3'
    )


def test_checkpoint_with_classes_in_another_order(make_config, logged, tmp_path):
    """Each class must have the label that it had in training."""
    cfg, data = make_config('classification')
    classes = sorted(path.name for path in (data / 'val').iterdir())
    path, weights = str(tmp_path / 'a.pth'), build_model(cfg).state_dict()

    def write(names, **content):
        meta = dict(dataset_meta=dict(classes=names), epoch=1, iter=2)
        torch.save(dict(state_dict=weights, meta=meta, **content), path)

    for names in (classes, [f'class {name}' for name in classes], classes[:3]):
        write(names)
        check_testing(cfg, path)
    assert len(logged) == 1 and 'predictions are assigned by number, not by name' in logged[0]
    write(classes[::-1])
    with pytest.raises(PreflightError, match='numbers its classes differently') as error:
        check_testing(cfg, path)
    assert f'{classes[0]!r} has label 0, but 4 in the checkpoint' in str(error.value)
    write(classes[::-1], optimizer={}, message_hub={})
    cfg.resume, cfg.load_from = True, path
    assert all('numbers its classes differently' in problem for problem in problems(cfg))


def test_test_data_that_lack_a_class_of_the_checkpoint(make_config, tmp_path):
    cfg, data = make_config('classification', {'test_evaluator.topk': (1,)})
    classes = sorted(path.name for path in (data / 'val').iterdir())
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=build_model(cfg).state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)
    shutil.rmtree(data / 'val' / classes[2])
    with pytest.raises(PreflightError, match='model.head.num_classes is 5, but the data set has 4 classes') as error:
        check_testing(cfg, path)
    assert f'{path} was trained with 5 classes ({", ".join(classes)}): give the data set the same' in str(error.value)
    assert '--cfg-options' not in str(error.value)
    (data / 'val' / classes[2]).mkdir()
    check_testing(cfg, path)


def test_reduce_zero_label_differs_between_training_and_validation(make_config, logged):
    cfg, data = make_config('segmentation')
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
    # Maps in another folder may number the classes differently.
    shutil.copytree(data, data.parent / 'other')
    cfg.val_dataloader.dataset.data_root = str(data.parent / 'other')
    logged.clear()
    check_training(cfg)
    assert any('the same reduce_zero_label, unless their segmentation maps number' in line for line in logged)
    # These maps do: a label 6 of 6 classes means that classes are numbered from 1.
    for path in (data.parent / 'other' / 'annotations').rglob('*.png'):
        with Image.open(path) as image:
            image.point(lambda label: label + 1).save(path)
    logged.clear()
    check_training(cfg)
    assert not any('reduce_zero_label' in line for line in logged)
