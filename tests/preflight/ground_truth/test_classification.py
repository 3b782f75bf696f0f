"""Evaluation of the ground truth of classifiers, with one label per image and several."""

import json

import pytest
from problems import validation_problems


def test_topk_above_the_number_of_classes(make_config):
    cfg, _ = make_config('classification')
    cfg.val_evaluator.topk = (1, 9)
    assert 'topk=(1, 9), but there are 5 classes: set topk=(1,)' in validation_problems(cfg)


@pytest.mark.parametrize('topk', ['a', (), (0,), (1, 0), (1, 5.0)])
def test_topk_that_is_no_number_of_classes(make_config, topk):
    cfg, _ = make_config('classification')
    cfg.val_evaluator.topk = topk
    assert validation_problems(cfg).startswith(
        f'val_evaluator: Accuracy has topk={tuple(topk)!r}, expected numbers of classes, 1 or more, such as topk=(1, 5)'
    )


def test_classes_that_never_occur_lower_the_precision(make_config, logged):
    cfg, data = make_config('classification')
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='SingleLabelMetric'), dict(type='ConfusionMatrix')]
    validation_problems(cfg, 0)
    assert logged == []
    for path in (data / 'val' / 'star').iterdir():
        path.unlink()
    (data / 'val' / 'star' / 'x.txt').write_text('')
    validation_problems(cfg, 0)
    assert (
        'SingleLabelMetric: the ground truth itself scores only' in logged[-1]
        and 'the classes star never occur' in logged[-1]
    )


def make_multi_label(cfg, data, difficult=False):
    """Replace the validation set by one of several labels per image, and return it."""
    names = ('circle', 'cross', 'square', 'star', 'triangle')
    images = sorted((data / 'val').rglob('*.jpg'))
    rows = [
        dict(img_path=str(path.relative_to(data)), gt_label=[place, (place + 1) % 5])
        for place, path in enumerate(images)
    ]
    for row in rows:
        row.update(gt_label_difficult=[row['gt_label'].pop()] if difficult else [])
    (data / 'val.json').write_text(json.dumps(dict(metainfo=dict(classes=names), data_list=rows)))
    leaf = dict(
        type='MultiLabelDataset', data_root=str(data), ann_file='val.json', data_prefix='',
        pipeline=[
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=64),
            dict(type='PackInputs', meta_keys=('img_path', 'ori_shape', 'gt_label_difficult')),
        ],
    )  # fmt: skip
    cfg.val_dataloader.dataset = leaf
    return leaf


def test_multi_label_metrics(make_config, logged):
    cfg, data = make_config('classification')
    leaf = make_multi_label(cfg, data)
    cfg.val_evaluator = [
        dict(type='MultiLabelMetric', thr=0.5),
        dict(type='AveragePrecision'),
        dict(type='VOCMultiLabelMetric', thr=0.5, prefix='voc'),
        dict(type='VOCAveragePrecision', prefix='voc'),
    ]
    validation_problems(cfg, 0)
    assert logged == []
    cfg.val_evaluator = dict(type='MultiLabelMetric', topk=1)
    validation_problems(cfg, 0)
    assert 'its settings (thr=None, topk=1) do not fit the labels' in logged[-1]
    logged.clear()
    make_multi_label(cfg, data, difficult=True)
    cfg.val_evaluator = dict(type='VOCAveragePrecision')
    validation_problems(cfg, 0)
    assert logged == []
    leaf['pipeline'][-1].pop('meta_keys')
    cfg.val_dataloader.dataset = leaf
    assert "reads 'gt_label_difficult' of each sample" in validation_problems(cfg)


def test_images_without_labels(make_config):
    cfg, _ = make_config('classification')
    cfg.val_dataloader.dataset.with_label = False
    message = 'Accuracy reads labels, but the data set has none (with_label=False): give the labels, or'
    assert message in validation_problems(cfg)
