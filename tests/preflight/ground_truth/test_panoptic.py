"""Evaluation of panoptic segmentation maps and their annotation file."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from problems import validation_problems


def make_panoptic(cfg, data):
    """Replace the validation set by one in COCO's panoptic format, with a thing and stuff in each image."""
    (data / 'panoptic').mkdir(exist_ok=True)
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    annotations = []
    for image in content['images']:
        ids = np.full((64, 64), 300, np.int64)
        ids[10:30, 10:30] = 7
        name = image['file_name'].replace('.jpg', '.png')
        Image.fromarray(np.dstack([ids % 256, ids // 256, 0 * ids]).astype(np.uint8)).save(data / 'panoptic' / name)
        segments = [
            dict(id=7, category_id=1, iscrowd=0, bbox=[10, 10, 20, 20], area=400),
            dict(id=300, category_id=2, iscrowd=0, bbox=[0, 0, 64, 64], area=64 * 64 - 400),
        ]
        annotations.append(dict(image_id=image['id'], file_name=name, segments_info=segments))
    categories = [dict(id=1, name='thing', isthing=1), dict(id=2, name='stuff', isthing=0)]
    path = data / 'annotations' / 'panoptic.json'
    path.write_text(json.dumps(dict(images=content['images'], annotations=annotations, categories=categories)))
    leaf = cfg.val_dataloader.dataset
    leaf.update(
        type='CocoPanopticDataset',
        ann_file=str(path),
        data_prefix=dict(img='val2017/', seg='panoptic/'),
        metainfo=dict(classes=('thing', 'stuff'), thing_classes=('thing',), stuff_classes=('stuff',)),
    )
    leaf.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
    ]
    cfg.val_evaluator = dict(type='CocoPanopticMetric', ann_file=str(path), seg_prefix=str(data / 'panoptic'))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 1
    return path


@pytest.mark.skipif(importlib.util.find_spec('panopticapi') is None, reason='panopticapi is not installed')
def test_panoptic_metric(make_config, logged):
    cfg, data = make_config('detection')
    path = make_panoptic(cfg, data)
    validation_problems(cfg, 0)
    assert logged == []
    content = json.loads(path.read_text())
    for each in content['annotations'][0]['segments_info']:
        each['category_id'] = 3 - each['category_id']
    other = path.with_name('other.json')
    other.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(other)
    assert 'not 100: segmentation maps' in validation_problems(cfg)
    cfg.val_evaluator.update(ann_file=str(path), seg_prefix=str(data / 'lost'))
    assert 'CocoPanopticMetric fails on the data set' in validation_problems(cfg)


@pytest.mark.skipif(importlib.util.find_spec('panopticapi') is not None, reason='panopticapi is installed')
def test_missing_panopticapi_package(make_config):
    cfg, data = make_config('detection')
    make_panoptic(cfg, data)
    assert 'CocoPanopticMetric cannot be built (RuntimeError: panopticapi is not installed' in validation_problems(cfg)
