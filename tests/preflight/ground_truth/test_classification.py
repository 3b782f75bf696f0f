"""Labels of one class and of several."""

import json

from problems import validation_problems


def test_topk_above_the_classes(own):
    cfg, _ = own('classification')
    cfg.val_evaluator.topk = (1, 9)
    assert 'topk=(1, 9), but there are 5 classes: set topk=(1,)' in validation_problems(cfg)


def test_classes_that_never_occur_cost_precision(own, said):
    cfg, data = own('classification')
    cfg.val_evaluator = [dict(type='Accuracy'), dict(type='SingleLabelMetric'), dict(type='ConfusionMatrix')]
    validation_problems(cfg, 0)
    assert said == []
    for path in (data / 'val' / 'star').iterdir():
        path.unlink()
    (data / 'val' / 'star' / 'x.txt').write_text('')
    validation_problems(cfg, 0)
    assert (
        'SingleLabelMetric: the ground truth itself scores only' in said[-1]
        and 'the classes star never occur' in said[-1]
    )


def several_labels(cfg, data, difficult=False):
    """A data set of mmpretrain for several labels an image."""
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


def test_several_labels_an_image(own, said):
    cfg, data = own('classification')
    leaf = several_labels(cfg, data)
    cfg.val_evaluator = [
        dict(type='MultiLabelMetric', thr=0.5),
        dict(type='AveragePrecision'),
        dict(type='VOCMultiLabelMetric', thr=0.5, prefix='voc'),
        dict(type='VOCAveragePrecision', prefix='voc'),
    ]
    validation_problems(cfg, 0)
    assert said == []
    cfg.val_evaluator = dict(type='MultiLabelMetric', topk=1)
    validation_problems(cfg, 0)
    assert 'its settings (thr=None, topk=1) do not fit the labels' in said[-1]
    said.clear()
    several_labels(cfg, data, difficult=True)
    cfg.val_evaluator = dict(type='VOCAveragePrecision')
    validation_problems(cfg, 0)
    assert said == []
    leaf['pipeline'][-1].pop('meta_keys')
    cfg.val_dataloader.dataset = leaf
    assert "reads 'gt_label_difficult' of each sample" in validation_problems(cfg)


def test_images_without_labels(own):
    cfg, _ = own('classification')
    cfg.val_dataloader.dataset.with_label = False
    message = 'Accuracy reads labels, but the data set has none (with_label=False): give the labels, or'
    assert message in validation_problems(cfg)
