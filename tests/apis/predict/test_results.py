"""Files of results: COCO ids, polygons, tables."""

import csv
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from fcvit_mm.apis.load import Meta, meta_of
from fcvit_mm.apis.predict.results import (
    Classes,
    Coco,
    Detections,
    LabelMaps,
    PredictionError,
    as_valid_text,
    coco_ids,
    outlines,
    write_table,
)


@pytest.mark.parametrize('holes', [False, True])
def test_polygons_reproduce_the_mask(holes):
    coder = pytest.importorskip('pycocotools.mask')
    random = np.random.RandomState(0)
    for _ in range(20):
        mask = (random.rand(12, 17) > 0.6).astype(np.uint8)
        if not holes:  # columns filled from the top have no holes
            mask = np.sort(mask, 0)[::-1]
        again = coder.decode(coder.merge(coder.frPyObjects(outlines(mask), *mask.shape))) if mask.any() else mask
        assert (again >= mask).all() and (holes or (again == mask).all())
    assert outlines(np.zeros((3, 3), np.uint8)) == []
    assert outlines(np.pad(np.ones((1, 1), np.uint8), 2))[0] in ([2, 2, 2, 3, 3, 3, 3, 2],)


def test_file_names_that_are_not_utf8(tmp_path):
    name = b'gr\xf6n.jpg'.decode(errors='surrogateescape')
    assert as_valid_text(name) == 'gr\\udcf6n.jpg' and as_valid_text('gr\u00fcn.jpg') == 'gr\u00fcn.jpg'
    write_table(str(tmp_path / 'a.csv'), ('image', 'label'), [(name, 1)])
    assert (tmp_path / 'a.csv').read_text(encoding='utf-8') == 'image,label\ngr\\udcf6n.jpg,1\n'


def test_names_with_line_breaks(tmp_path):
    rows = [['a\rb', 'c\nd'], ['e\r\nf', 'g,h'], ['i', 'j']]
    write_table(str(tmp_path / 'a.csv'), ('name', 'other'), rows)
    with open(tmp_path / 'a.csv', newline='') as file:
        assert list(csv.reader(file)) == [['name', 'other'], *rows]
    assert (tmp_path / 'a.csv').read_bytes().endswith(b'"g,h"\ni,j\n')


def test_ids_without_annotations_start_at_1():
    assert Coco().image_id(0, 'a.jpg') == 1 and Coco().category_id(4) == 5


def test_ids_are_those_of_the_annotation_file(tmp_path):
    content = dict(
        images=[dict(id=7, file_name='x/a.jpg'), dict(id=8, file_name='b.jpg'), dict(id=9, file_name='y/b.jpg')],
        categories=[dict(id=90, name='dog'), dict(id=3, name='cat'), dict(id=1, name='more')],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    coco = coco_ids(str(tmp_path / 'a.json'), Meta(('cat', 'dog')), 2)
    assert [coco.image_id(0, name) for name in ('x/a.jpg', 'a.jpg', 'z/a.jpg', 'b.jpg', 'y/b.jpg')] == [7, 7, 7, 8, 9]
    assert [coco.category_id(index) for index in (0, 1)] == [3, 90]
    with pytest.raises(PredictionError, match='has no image c.jpg'):
        coco.image_id(0, 'c.jpg')
    coco.check_images(['x/a.jpg', 'b.jpg'])
    with pytest.raises(
        PredictionError, match='a.json has one image for both x/a.jpg and y/a.jpg: give only the images'
    ):
        coco.check_images(['x/a.jpg', 'b.jpg', 'y/a.jpg'])
    Coco().check_images(['x/a.jpg', 'y/a.jpg'])
    with pytest.raises(PredictionError, match='has no category bird, expected all classes of the model'):
        coco_ids(str(tmp_path / 'a.json'), Meta(('bird', 'cat')), 2)
    for names, classes in (((), 0), ((), 2), (('cat', 'dog'), 3)):
        with pytest.raises(PredictionError, match=f'names {len(names)} of {classes} classes of the model'):
            coco_ids(str(tmp_path / 'a.json'), Meta(names), classes)
    (tmp_path / 'a.json').write_text('[]')
    with pytest.raises(PredictionError, match='cannot be read as COCO annotations'):
        coco_ids(str(tmp_path / 'a.json'), Meta(('cat',)), 1)


def test_unsupported_predictions_are_refused(tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.structures import BaseDataElement, InstanceData

    detections = Detections(str(tmp_path), Meta(), 1, Coco(), 0.3)
    maps = LabelMaps(str(tmp_path), Meta(), 1, lambda name: name)
    for writer, expected in (
        (Classes(str(tmp_path), Meta(), 5, 'csv'), 'class scores'),
        (detections, 'boxes'),
        (maps, 'a segmentation map'),
    ):
        with pytest.raises(PredictionError, match=rf'predicts depth, expected {expected} .*with tools/test.py'):
            writer.result_of(BaseDataElement(depth=1), 'a.png')
    rotated = InstanceData(bboxes=torch.zeros(2, 5), scores=torch.ones(2), labels=torch.zeros(2))
    with pytest.raises(PredictionError, match='boxes have 5 values, expected 4, .*rotated boxes with tools/test.py'):
        detections.result_of(BaseDataElement(pred_instances=rotated), 'a.png')


def test_class_names_of_the_checkpoint_or_else_of_the_config():
    pytest.importorskip('mmseg')
    dataset = dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b'), palette=[[1, 2, 3], [4, 5, 6]]))
    cfg = Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset)))
    assert meta_of(cfg, {}) == Meta(('a', 'b'), ((1, 2, 3), (4, 5, 6)))
    assert meta_of(cfg, {'meta': {'dataset_meta': {'CLASSES': ['c']}}}) == Meta(('c',))
    # Checkpoints of mmdet 2, mmseg 0.x and mmcls.
    assert meta_of(cfg, {'meta': {'CLASSES': ('c',), 'PALETTE': [[1, 2, 3]]}}) == Meta(('c',), ((1, 2, 3),))
    assert meta_of(cfg, {'meta': {'CLASSES': None}}) == meta_of(cfg, {'meta': None}) == meta_of(cfg, {})
    assert Meta(('c',)).name(0) == 'c' and Meta(('c',)).name(1) == '1'
    dataset['type'] = 'NoSuchDataset'
    cfg = Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset)))
    assert meta_of(cfg, {}).names == ('a', 'b') and meta_of(Config(dict(default_scope='mmseg')), {}) == Meta()
