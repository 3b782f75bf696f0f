"""Metrics of exported files, computed with the library's data, evaluator and postprocessing."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectors import build_detector, drawn_image
from mmengine.utils import digit_version

from fcvit_mm.apis.load import Network
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import UserError
from fcvit_mm.export.detectors.detections import Detections
from fcvit_mm.export.evaluation import build_test_data, evaluate
from fcvit_mm.export.exporter import _in_pytorch, export_model, format_report
from fcvit_mm.export.parts import FromPixels, Part, Preparation

USUAL = Preparation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 'RGB')
#: Images are resized, so that predictions are mapped back, and padded one by one as in the graph.
DETECTION = """
default_scope = 'mmdet'
model = dict(type='MaskRCNN')
test_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(
    type='CocoDataset', data_root={root!r}, ann_file='a.json', data_prefix=dict(img='images/'), test_mode=True,
    metainfo=dict(classes=('a', 'b', 'c')), pipeline=[
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(150, 90), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_evaluator = dict(type='CocoMetric', ann_file={root!r} + '/a.json', metric={metric})
"""


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    """Return a function that builds a detector, and a data set whose objects are its best detections."""
    pytest.importorskip('mmdet')
    from mmdet.models import DetDataPreprocessor
    from pycocotools import mask as masks

    made = {}

    def get(name):
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        (folder / 'images').mkdir()
        model = build_detector(name)
        model.data_preprocessor = DetDataPreprocessor(USUAL.mean, USUAL.std, bgr_to_rgb=True, pad_size_divisor=32)
        images, objects = [], []
        for number, (height, width) in enumerate([(64, 101), (120, 77), (100, 100)], 1):
            cv2.imwrite(str(folder / 'images' / f'{number}.png'), drawn_image(height, width, number))
            images.append(dict(id=number, file_name=f'{number}.png', height=height, width=width))
        categories = [dict(id=i, name=name) for i, name in enumerate('abc', 1)]
        content = dict(images=images, annotations=[], categories=categories)
        (folder / 'a.json').write_text(json.dumps(content))
        has_masks = name in ('mask_rcnn', 'rtmdet_ins')
        text = DETECTION.format(root=str(folder), metric=['bbox', 'segm'] if has_masks else ['bbox'])
        (folder / 'a.py').write_text(text)
        cfg = load_config(str(folder / 'a.py'))
        for batch in build_test_data(cfg):
            with torch.no_grad():
                found = model.test_step(batch)
            for sample in found:
                instances = sample.pred_instances[:8]
                for i, (box, label) in enumerate(zip(instances.bboxes.tolist(), instances.labels.tolist())):
                    mask = instances.masks[i].numpy() if has_masks else np.ones((4, 4))
                    run = masks.encode(np.asfortranarray(mask, dtype=np.uint8))
                    corners = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                    objects.append(
                        dict(
                            id=len(objects) + 1,
                            image_id=sample.img_id,
                            category_id=label + 1,
                            bbox=corners,
                            area=corners[2] * corners[3],
                            iscrowd=0,
                            segmentation=dict(run, counts=run['counts'].decode()),
                        )
                    )
        (folder / 'a.json').write_text(json.dumps(dict(content, annotations=objects)))
        made[name] = cfg, Network(name, model, 'detection', 'a.pth', None)
        return made[name]

    return get


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('name', ['mask_rcnn', 'rtmdet_ins', 'fcos'])
def test_graph_has_the_metrics_of_the_detector(name, inside, coco):
    mmdet = pytest.importorskip('mmdet')
    cfg, network = coco(name)
    part = Detections(network.model)
    part = (FromPixels(part, USUAL) if inside else part).eval()
    right = _in_pytorch(part)

    def shifted(images):
        boxes, *others = right(images)
        return (boxes * 0.9, *others)  # stays within the image

    found = evaluate(cfg, network, part, build_test_data(cfg), dict(right=right, shifted=shifted))
    assert list(found) == ['PyTorch', 'right', 'shifted']
    # mmdet 3.3 exchanges the factors of width and height when it resizes masks of the complete image.
    exchanged = name == 'rtmdet_ins' and digit_version(mmdet.__version__) < digit_version('3.4')
    for key in found['PyTorch']:
        assert found['right'][key] == found['PyTorch'][key] or (exchanged and 'segm' in key)
    keys = ['coco/bbox_mAP', *(['coco/segm_mAP'] if name != 'fcos' else [])]
    for key in keys:
        assert found['PyTorch'][key] > 0.3 and (key != 'coco/bbox_mAP' or found['shifted'][key] < found['PyTorch'][key])
    # The model is restored.
    assert 'predict' not in vars(network.model)


def with_data(config, text):
    path = config.replace('.py', '_data.py')
    with open(path, 'w') as file:
        file.write(f'_base_ = {config!r}\n{text}')
    return path


def test_file_has_the_metrics_of_the_classifier(saved, samples, tmp_path):
    config, checkpoint = saved('classification')
    text = (
        f'test_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(data_root={str(samples)!r}))\n'
        "test_evaluator = dict(type='Accuracy', topk=(1, 2))\n"
    )
    report = export_model(
        with_data(config, text), checkpoint, str(tmp_path / 'a.pt'), 'torchscript', rounds=0, evaluated=True
    )
    metrics = report['metrics']
    assert list(metrics) == ['PyTorch', 'TorchScript'] and metrics['PyTorch'] == metrics['TorchScript']
    assert set(metrics['PyTorch']) == {'accuracy/top1', 'accuracy/top2'} and metrics['PyTorch']['accuracy/top2'] > 0
    assert 'metrics on the test data:\n  PyTorch: accuracy/top1' in format_report(json.loads(json.dumps(report)))


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_file_has_the_metrics_of_the_segmentor(mode, saved, tmp_path):
    """Also with sliding windows."""
    config, checkpoint = saved('segmentation')
    for kind in ('images', 'maps'):
        (tmp_path / kind).mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        cv2.imwrite(str(tmp_path / 'images' / f'{number}.jpg'), drawn_image(70, 83, number))
        cv2.imwrite(str(tmp_path / 'maps' / f'{number}.png'), rng.integers(0, 4, (70, 83), np.uint8))
    text = f"""
model = dict(test_cfg=dict(mode={mode!r}, crop_size=(48, 48), stride=(32, 32)))
test_dataloader = dict(batch_size=1, num_workers=0, dataset=dict(
    type='BaseSegDataset', data_root={str(tmp_path)!r}, data_prefix=dict(img_path='images', seg_map_path='maps'),
    metainfo=dict(classes=('a', 'b', 'c', 'd'), palette=[[0, 0, 0]] * 4), pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
"""
    for preprocess in ('beside', 'inside'):
        report = export_model(
            with_data(config, text),
            checkpoint,
            str(tmp_path / 'a.pt'),
            'torchscript',
            rounds=0,
            evaluated=True,
            preprocess=preprocess,
        )
        metrics = report['metrics']
        assert metrics['PyTorch'] == metrics['TorchScript'] and metrics['PyTorch']['mIoU'] > 1


def test_persistent_workers_without_workers(coco):
    """A config sets num_workers=0, but inherits persistent_workers=True."""
    pytest.importorskip('mmdet')
    cfg, _ = coco('fcos')
    cfg.test_dataloader.update(num_workers=0, persistent_workers=True)
    assert len(build_test_data(cfg)) > 0


def test_impossible_evaluations_are_refused(saved, tmp_path):
    config, checkpoint = saved('classification')
    given = dict(config=config, checkpoint=checkpoint, out=str(tmp_path / 'a.pt'), kind='torchscript', evaluated=True)
    with pytest.raises(UserError, match='has no test_evaluator: add it, or omit --evaluate'):
        export_model(**given)
    with pytest.raises(UserError, match='--evaluate needs the complete model, not --part neck: use --part model'):
        export_model(**given, part='neck')
    text = (
        "test_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(data_root='nowhere'))\n"
        "test_evaluator = dict(type='Accuracy')\n"
    )
    with pytest.raises(UserError, match='(?s)nowhere.*Check the test data and the evaluator in the config'):
        export_model(**dict(given, config=with_data(config, text)))

    class Features(Part):
        output = 'features'

    with pytest.raises(UserError, match='the graph returns features: use --part model'):
        evaluate(
            load_config(config), Network('a', Features(), 'classification', None, None), Features(), [], {'a': None}
        )
