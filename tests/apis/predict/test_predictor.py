"""The options for features, mixed precision, augmentation, optimization, batches and tiles."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from predictions import FOLDERS, numbers, predict_to, table

from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.predict import BatchPredictor, Options, PredictionError
from fcvit_mm.apis.predict.predictor import _device_of_process, _numbers_of_classes
from fcvit_mm.apis.predict.preparation import prepare
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import UserError
from fcvit_mm.images import read_image


def test_features_are_the_spatial_mean_of_the_last_output(model_of, tmp_path):
    model = model_of('classification')
    predict_to(model, tmp_path, batch_size=3, features=True)
    predictor = BatchPredictor(load_config(model[0]), model[1], Options(device='cpu'))
    features = np.load(tmp_path / 'features.npy')
    for row, expected in zip(table(tmp_path / 'features.csv'), features):
        pixels = read_image(model[2] / row['image'])
        data = prepare(predictor.pipeline, pixels, row['image'], 0)
        inputs = predictor.network.data_preprocessor(dict(inputs=[data['inputs']], data_samples=None))['inputs']
        with torch.no_grad():
            outputs = predictor.network.backbone(inputs)
        assert outputs[-1].mean((2, 3))[0].numpy() == pytest.approx(expected, abs=1e-5)
    assert len(features) == 5 and features.std(0).max() > 0


def test_features_with_sliding_windows_are_refused(model_of, tmp_path):
    config, checkpoint, _ = model_of('segmentation')
    sliding = tmp_path / 'sliding.py'
    sliding.write_text(
        f"_base_ = '{config}'\nmodel = dict(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(16, 16)))\n"
    )
    with pytest.raises(
        PredictionError, match='--features: .*sliding.py has model.test_cfg.mode="slide".*omit --features'
    ):
        BatchPredictor(load_config(str(sliding)), checkpoint, Options(device='cpu', features=True))


def test_each_process_uses_its_own_gpu(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert [_device_of_process(name) for name in ('cpu', 'cuda', 'cuda:3')] == ['cpu', 'cuda', 'cuda:3']
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: True)
    assert [_device_of_process(name) for name in ('cpu', 'cuda', 'cuda:3')] == ['cpu', 'cuda:1', 'cuda:3']


def test_number_of_classes_is_that_of_the_predicting_head():
    # HTC in mmdet also learns 183 classes of stuff with its semantic head.
    hybrid = dict(rpn_head=dict(num_classes=1), roi_head=dict(semantic_head=dict(num_classes=183)))
    hybrid['roi_head']['bbox_head'] = [dict(num_classes=80), dict(num_classes=80)]
    assert list(_numbers_of_classes(hybrid)) == [80, 80]
    assert list(_numbers_of_classes(dict(decode_head=[dict(num_classes=7)], auxiliary_head=dict(num_classes=9)))) == [7]


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_classes_without_a_name_are_named_by_their_number(model_of, tmp_path, task):
    config, checkpoint, images = model_of(task)
    content = torch.load(checkpoint)
    content['meta'] = dict(dataset_meta=dict(classes=('one',), palette=[(1, 2, 3)]))
    torch.save(content, tmp_path / 'few.pth')
    predict_to((config, str(tmp_path / 'few.pth'), images), tmp_path / 'out', draw=True)
    assert len(list((tmp_path / 'out' / 'drawn').rglob('*.png'))) == 5
    if task == 'detection':
        categories = json.loads((tmp_path / 'out' / 'annotations.json').read_text())['categories']
        assert [each['name'] for each in categories] == ['one', '1', '2', '3', '4']
        annotations = str(images.parent / 'annotations' / 'instances_val2017.json')
        with pytest.raises(PredictionError, match='--coco .*names 1 of 5 classes of the model'):
            predict_to((config, str(tmp_path / 'few.pth'), images), tmp_path / 'coco', coco=annotations)
        assert not (tmp_path / 'coco').exists()


def test_segmentor_with_one_output_channel_has_two_classes(model_of, tmp_path):
    config, _, images = model_of('segmentation')
    head = "dict(num_classes=1, out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))"
    path = tmp_path / 'binary.py'
    path.write_text(
        f"_base_ = '{config}'\nmodel = dict(decode_head={head}, auxiliary_head={head})\n"
        "test_dataloader = dict(dataset=dict(metainfo=dict(_delete_=True, classes=('road',), palette=[[1, 2, 3]])))\n"
    )
    torch.save(build_model(load_config(str(path))).state_dict(), tmp_path / 'model.pth')
    predict_to((str(path), str(tmp_path / 'model.pth'), images), tmp_path / 'out', draw=True)
    assert [row['class'] for row in table(tmp_path / 'out' / 'classes.csv')] == ['road', '1']


def test_optimize_without_effect_is_refused(tmp_path):
    pytest.importorskip('mmpretrain')
    config = tmp_path / 'config.py'
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='MobileNetV2', widen_factor=0.1),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=1280),
    )
    config.write_text(
        f"default_scope = 'mmpretrain'\nmodel = {model}\n"
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]\n"
        "test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=test_pipeline))\n"
    )
    torch.save(build_model(load_config(str(config))).state_dict(), tmp_path / 'model.pth')
    with pytest.raises(
        PredictionError, match='--optimize: ImageClassifier contains nothing to optimize.*Omit --optimize'
    ):
        BatchPredictor(load_config(str(config)), str(tmp_path / 'model.pth'), Options(device='cpu', optimize=True))


def test_tta_without_tta_model_is_refused(model_of, tmp_path):
    with pytest.raises(UserError, match='--tta needs tta_model'):
        predict_to(model_of('detection'), tmp_path / 'out', tta=True)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'task, options',
    [
        ('classification', dict(top=0, features=True)),
        ('classification', dict(top=0, tta=True)),
        ('detection', dict(score_thr=0.05)),
        ('segmentation', dict(features=True)),
        ('segmentation', dict(tta=True)),
    ],
)
def test_results_do_not_depend_on_the_batch_size(mixed, tmp_path, task, options):
    model = mixed(task)
    for size in (1, 4):
        assert predict_to(model, tmp_path / str(size), batch_size=size, **options).images == 5
    folders = tmp_path / '1', tmp_path / '4'
    one, four = (numbers(folder, task) for folder in folders)
    assert len(one) and np.abs(one - four).max() < (0.02 if task == 'detection' else 1e-5)
    if 'features' in options:
        one, four = (np.load(folder / 'features.npy') for folder in folders)
        assert one == pytest.approx(four, abs=1e-4) and one.std(0).max() > 1e-3


@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_mixed_precision_and_tta_change_results_slightly(model_of, tmp_path, task):
    """The results differ from those without the option, but only a little."""
    model = model_of(task)
    found = {}
    for name in ('none', 'amp', 'tta'):
        options = dict(top=0) if task == 'classification' else {}
        predict_to(model, tmp_path / name, amp=name == 'amp', tta=name == 'tta', **options)
        if task == 'classification':
            rows = sorted(table(tmp_path / name / 'predictions.csv'), key=lambda row: (row['image'], row['class']))
            found[name] = np.array([float(row['probability']) for row in rows])
        else:
            paths = sorted((tmp_path / name / 'labels').iterdir())
            found[name] = np.stack([np.asarray(Image.open(path)) for path in paths])
    for name in ('amp', 'tta'):
        if task == 'classification':
            assert 0 < np.abs(found[name] - found['none']).max() < 0.05
        else:
            assert 0.5 < (found[name] == found['none']).mean() < 1


#: Further options, and how much --optimize may change probabilities, boxes and scores, or the share of pixels.
TOGETHER = [
    ('classification', dict(top=0), 1e-5),
    ('classification', dict(top=0, features=True), 1e-5),
    ('classification', dict(top=0, amp=True), 0.02),
    ('detection', {}, 0.01),
    ('detection', dict(tile=64), 0.01),
    ('segmentation', {}, 0.001),
    ('segmentation', dict(tile=64, amp=True), 0.2),
]


@pytest.mark.parametrize('task, options, tolerance', TOGETHER)
def test_optimized_models_give_the_same_predictions(model_of, tmp_path, task, options, tolerance):
    if 'tile' in options:
        pytest.importorskip('sahi')
    model = model_of(task)
    image = [str(sorted(path for path in model[2].rglob('*') if path.is_file())[0])]
    for name in ('plain', 'optimized'):
        predict_to(model, tmp_path / name, image, optimize=name == 'optimized', **options)
    folders = plain, _ = tmp_path / 'plain', tmp_path / 'optimized'
    if task == 'classification':
        rows = [sorted(table(folder / 'predictions.csv'), key=lambda row: row['class']) for folder in folders]
        probabilities = [[float(row['probability']) for row in each] for each in rows]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=tolerance)
        if 'features' in options:
            features = [np.load(folder / 'features.npy') for folder in folders]
            assert features[0] == pytest.approx(features[1], abs=tolerance) and features[0].std() > 0
    elif task == 'detection':
        found = [json.loads((folder / 'results.json').read_text()) for folder in folders]
        assert len(found[0]) == len(found[1]) >= 10
        for one, other in zip(*found):
            assert one['category_id'] == other['category_id']
            assert [*one['bbox'], one['score']] == pytest.approx([*other['bbox'], other['score']], abs=tolerance)
    else:
        (name,) = (path.name for path in (plain / 'labels').iterdir())
        labels = [np.asarray(Image.open(folder / 'labels' / name)) for folder in folders]
        assert (labels[0] != labels[1]).mean() < tolerance


@pytest.mark.parametrize('task', FOLDERS)
def test_optimize_changes_the_network_and_makes_another_run(model_of, tmp_path, task):
    model = model_of(task)
    config = load_config(model[0])
    network = BatchPredictor(config, model[1], Options(device='cpu', optimize=True)).network
    assert network.state_dict().keys() != build_model(load_config(model[0])).state_dict().keys()
    image = [str(sorted(path for path in model[2].rglob('*') if path.is_file())[0])]
    predict_to(model, tmp_path, image)
    with pytest.raises(PredictionError, match='results of another run, with different optimize'):
        predict_to(model, tmp_path, image, optimize=True)


@pytest.mark.parametrize('options', [dict(), dict(tile=48)])
def test_masks_without_boxes_get_their_boxes(model_of, tmp_path, monkeypatch, options):
    """As of SOLO, whose boxes are zeros."""
    from mmengine.model import BaseModel
    from pycocotools import mask as coder

    if options:
        pytest.importorskip('sahi')
    original = BaseModel.test_step

    def test_step(self, data):
        samples = original(self, data)
        for sample in samples:
            sample.pred_instances.bboxes = torch.zeros_like(sample.pred_instances.bboxes)
        return samples

    monkeypatch.setattr(BaseModel, 'test_step', test_step)
    predict_to(model_of('detection'), tmp_path, **options)
    found = json.loads((tmp_path / 'results.json').read_text())
    found = [one for one in found if coder.area(one['segmentation'])]
    assert len(found) > 5
    for one in found:
        assert one['bbox'] == coder.toBbox(one['segmentation']).tolist()


def test_tiles_of_a_segmentor_are_merged(model_of, tmp_path, monkeypatch):
    """With a model that classifies each pixel independently, tiles do not change the result."""
    pytest.importorskip('sahi')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = model_of('segmentation')
    sizes = []

    def step(self, data):
        labels = [each['data_samples'].ori_shape for each in data]
        sizes.extend(labels)
        found = [each['inputs'][0, : shape[0], : shape[1]] // 64 for each, shape in zip(data, labels)]
        return [SegDataSample(pred_sem_seg=PixelData(data=each[None])) for each in found]

    monkeypatch.setattr(BatchPredictor, '_step', step)
    config = tmp_path / 'plain.py'
    config.write_text(
        f"_base_ = '{model[0]}'\ntest_dataloader = dict(dataset=dict(pipeline=["
        "dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))\n"
    )
    image = np.random.RandomState(0).randint(0, 256, (150, 101, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    predict_to((str(config), model[1], None), tmp_path / 'out', [str(tmp_path / 'a.png')], tile=64, batch_size=4)
    assert len(sizes) > 4 and set(sizes) == {(64, 64)}
    assert (np.asarray(Image.open(tmp_path / 'out' / 'labels' / 'a.png')) == image[..., 0] // 64).all()


def test_tiles_of_a_detector_have_the_detections_of_each_tile(model_of, tmp_path):
    pytest.importorskip('sahi')
    model = model_of('detection')
    path = sorted(model[2].iterdir())[0]
    tile = cv2.imread(str(path))
    cv2.imwrite(str(tmp_path / 'four.png'), np.tile(tile, (2, 2, 1)))
    cv2.imwrite(str(tmp_path / 'one.png'), tile)
    predict_to(
        model, tmp_path / 'four', [str(tmp_path / 'four.png')], tile=64, overlap=0.0, draw=True, draw_score_thr=0.0
    )
    predict_to(model, tmp_path / 'one', [str(tmp_path / 'one.png')])
    from pycocotools import mask as coder

    four, one = (json.loads((tmp_path / name / 'results.json').read_text()) for name in ('four', 'one'))
    best = max(one, key=lambda each: each['score'])
    same = [each for each in four if abs(each['score'] - best['score']) < 1e-4]
    same = [each for each in same if each['category_id'] == best['category_id']]
    shifts = {(round(each['bbox'][0] - best['bbox'][0]), round(each['bbox'][1] - best['bbox'][1])) for each in same}
    assert shifts == {(0, 0), (64, 0), (0, 64), (64, 64)}
    for each in same:
        mask = coder.decode(each['segmentation'])
        x, y = (round(each['bbox'][i] - best['bbox'][i]) for i in (0, 1))
        assert mask.shape == (128, 128)
        assert (mask[y : y + 64, x : x + 64] == coder.decode(best['segmentation'])).all()
    assert cv2.imread(str(tmp_path / 'four' / 'drawn' / 'four.png')).shape == (128, 128, 3)
