"""Predictions as data: equal to the libraries' own, the same however they are made, and nothing half-written."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from harness import LIBRARIES, run_ranks, write_config
from PIL import Image

from fcvit_mm.apis import predict as module
from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.predict import BatchPredictor, Options, predict
from fcvit_mm.apis.results import PredictionError
from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import LibraryError, UserError
from fcvit_mm.images import ImageError, read_image

FOLDERS = {'classification': 'val', 'detection': 'val2017', 'segmentation': 'images/validation'}
CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')
MORE = {
    'classification': '',
    'detection': '\nmodel["test_cfg"]["rcnn"]["score_thr"] = 0.0\n',
    'segmentation': '\ntest_pipeline.insert(1, dict(type="Resize", scale=(96, 96)))\n',
}
SMALL = """
model.setdefault('backbone', {})['arch'] = dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1))
"""
HEADS = {
    'classification': "model['head']['in_channels'] = 32\n",
    'detection': "model['neck']['in_channels'] = [8, 16, 24, 32]\n",
    'segmentation': "model['decode_head']['in_channels'] = [8, 16, 24, 32]\n"
    "model['auxiliary_head']['in_channels'] = 24\n",
}


@pytest.fixture(scope='module')
def model_of(tmp_path_factory, shapes):
    """Task -> config and checkpoint of a small model with random weights, and its images."""
    made = {}

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            config = write_config(task, folder, shapes(task), SMALL + HEADS[task] + MORE[task])
            torch.manual_seed(1)
            model = build_model(load_config(str(config)))
            model.init_weights()
            meta = {'dataset_meta': {'classes': CLASSES}} if task == 'classification' else {}
            torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'model.pth')
            made[task] = (str(config), str(folder / 'model.pth'), shapes(task) / FOLDERS[task])
        return made[task]

    return get


def run(model, out, inputs=None, **options):
    config, checkpoint, images = model
    options = Options(**{'workers': 0, 'device': 'cpu', **options})
    return predict(load_config(config), checkpoint, inputs or [str(images)], str(out), options)


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'run.json'
    }


@pytest.fixture
def parts_of_two(monkeypatch):
    monkeypatch.setattr(module, 'PART', 2)


def test_classes_are_those_of_the_library(model_of, tmp_path):
    from mmpretrain import ImageClassificationInferencer

    config, checkpoint, images = model_of('classification')
    done = run((config, checkpoint, images), tmp_path, batch_size=2, top=0)
    rows = table(tmp_path / 'predictions.csv')
    assert done.images == 5 and len(rows) == 25
    library = ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')
    for row, result in zip(rows[::5], library([str(images / row['image']) for row in rows[::5]])):
        assert int(row['class_id']) == result['pred_label'] and row['rank'] == '1'
        assert float(row['probability']) == pytest.approx(result['pred_score'], abs=1e-5)
    assert {row['class'] for row in rows} == set(CLASSES)
    assert sum(float(row['probability']) for row in rows[:5]) == pytest.approx(1, abs=1e-5)


def test_boxes_and_masks_are_those_of_the_library(model_of, tmp_path):
    from mmdet.apis import DetInferencer
    from pycocotools import mask as coder
    from pycocotools.coco import COCO

    config, checkpoint, images = model_of('detection')
    run((config, checkpoint, images), tmp_path)
    library = DetInferencer(config, weights=checkpoint, device='cpu', show_progress=False)
    written = COCO(str(tmp_path / 'annotations.json'))
    results = written.loadRes(str(tmp_path / 'results.json'))
    assert len(written.imgs) == 5 and [each['name'] for each in written.cats.values()][:2] == ['circle', 'cross']
    compared = 0
    for number, image in written.imgs.items():
        expected = library(str(images / image['file_name']), return_datasamples=True)['predictions'][0].pred_instances
        found = results.imgToAnns[number]
        assert len(found) == len(expected)
        for one, box, score, label, mask in zip(
            found, expected.bboxes, expected.scores, expected.labels, expected.masks
        ):
            left, top, width, height = one['bbox']
            assert box.tolist() == pytest.approx([left, top, left + width, top + height], abs=0.01)
            assert one['score'] == pytest.approx(float(score), abs=1e-5) and one['category_id'] == int(label) + 1
            assert (coder.decode(one['segmentation']) == mask.numpy()).all()
            compared += 1
    assert compared


def test_label_maps_are_those_of_the_library(model_of, tmp_path):
    from mmseg.apis import MMSegInferencer

    config, checkpoint, images = model_of('segmentation')
    run((config, checkpoint, images), tmp_path)
    library = MMSegInferencer(config, weights=checkpoint, device='cpu')
    rows = table(tmp_path / 'labels.csv')
    assert len(rows) == 5
    for row in rows:
        image = Image.open(tmp_path / row['labels'])
        expected = library(str(images / row['image']), return_datasamples=True).pred_sem_seg.data[0].numpy()
        assert image.mode == 'P' and (np.asarray(image) == expected).all()
        assert image.getpalette()[:6] == [9, 9, 9, 255, 0, 0]
        assert row['classes'] == ' '.join(map(str, np.unique(expected)))
    assert [row['class'] for row in table(tmp_path / 'classes.csv')][0] == 'background'


def truth(model_of, monkeypatch):
    """Let the predictor give the truth of the data set's annotations, as mmdet's structures."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    from pycocotools.coco import COCO

    path = next(iter(model_of('detection')[2].parent.glob('annotations/instances_val*.json')))
    coco = COCO(str(path))
    # The model's order of classes is that of its config, not of the file.
    labels = {number: index for index, number in enumerate(sorted(coco.cats))}
    names = {image['file_name']: number for number, image in coco.imgs.items()}

    def step(self, data):
        samples = []
        for each in data:
            found = coco.imgToAnns[names[each['data_samples'].img_path]]
            boxes = torch.tensor([one['bbox'] for one in found]).view(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            masks = [torch.from_numpy(coco.annToMask(one).astype(bool)) for one in found]
            instances = InstanceData(
                bboxes=boxes,
                scores=torch.ones(len(found)),
                labels=torch.tensor([labels[one['category_id']] for one in found]).long(),
                masks=torch.stack(masks),
            )
            samples.append(DetDataSample(pred_instances=instances))
        return samples

    monkeypatch.setattr(BatchPredictor, '_step', step)
    return path, coco


def test_the_truth_scores_perfectly_against_annotations(model_of, tmp_path, monkeypatch):
    from mmdet.datasets import CocoDataset
    from pycocotools.cocoeval import COCOeval

    path, coco = truth(model_of, monkeypatch)
    content = json.loads(path.read_text())
    for image in content['images']:
        image['id'] += 1000
    for one in content['annotations']:
        one['image_id'] += 1000
        one['category_id'] = 7 * one['category_id']
    for category in content['categories']:
        category['id'] *= 7
    (tmp_path / 'other.json').write_text(json.dumps(content))
    run(model_of('detection'), tmp_path / 'out', coco=str(tmp_path / 'other.json'))
    truth_again = type(coco)(str(tmp_path / 'other.json'))
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(truth_again, truth_again.loadRes(str(tmp_path / 'out' / 'results.json')), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == 1
    # The data set trains: its outlines cover what the masks do.
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'out' / 'annotations.json'),
        metainfo=dict(classes=tuple(category['name'] for category in content['categories'])),
        data_prefix=dict(img=str(model_of('detection')[2])),
        pipeline=[],
    )
    written = type(coco)(str(tmp_path / 'out' / 'annotations.json'))
    assert len(dataset) == 5 and len(written.anns) == len(content['annotations'])
    for one, other in zip(written.anns.values(), sorted(content['annotations'], key=lambda one: one['image_id'])):
        assert one['area'] == pytest.approx(truth_again.annToMask(other).sum(), abs=1)
        found, expected = written.annToMask(one), truth_again.annToMask(other)
        assert (found == expected).all()


def test_what_was_killed_continues_and_is_the_same(model_of, tmp_path, monkeypatch, parts_of_two):
    model = model_of('segmentation')
    run(model, tmp_path / 'once', features=True)
    seen = []
    original = BatchPredictor._step

    def step(self, data):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(data)
        return original(self, data)

    monkeypatch.setattr(BatchPredictor, '_step', step)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / 'twice', features=True)
    assert not (tmp_path / 'twice' / 'labels.csv').exists()
    for name in ('.labels.csv.abcdefgh.tmp', 'parts/.00000001.json.abcdefgh.tmp', 'labels/.1.png.abcdefgh.tmp'):
        (tmp_path / 'twice' / name).write_bytes(b'half')
    monkeypatch.setattr(BatchPredictor, '_step', lambda self, data: seen.append(data) or original(self, data))
    done = run(model, tmp_path / 'twice', features=True)
    # The part that was not complete is done again.
    assert done.resumed == 2 and len(seen) == 3 + 3
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')
    assert not (tmp_path / 'twice' / 'parts').exists()
    # A process killed while it cleaned up leaves parts, and something half-written.
    (tmp_path / 'twice' / 'parts').mkdir()
    for name in ('parts/00000001.json', '.run.json.abcdefgh.tmp'):
        (tmp_path / 'twice' / name).write_bytes(b'half')
    assert not run(model, tmp_path / 'twice', features=True).written and len(seen) == 6
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')


#: The preparation of images that keeps their proportions, so that sizes differ.
KEEP_RATIO = {
    'classification': "dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=96), dict(type='PackInputs')",
    'detection': "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True), "
    "dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))",
    'segmentation': "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(192, 96), keep_ratio=True), "
    "dict(type='PackSegInputs')",
}


@pytest.fixture
def mixed(model_of, tmp_path):
    """Task -> a small model whose pipeline keeps proportions, and images of two sizes, mixed."""

    def get(task):
        config, checkpoint, images = model_of(task)
        path = tmp_path / 'keep_ratio.py'
        path.write_text(f"_base_ = '{config}'\ntest_dataloader = dict(dataset=dict(pipeline=[{KEEP_RATIO[task]}]))\n")
        (tmp_path / 'in').mkdir()
        first = cv2.imread(str(sorted(path for path in images.rglob('*') if path.is_file())[0]))
        for number, width in enumerate((64, 40, 64, 40, 64)):
            image = np.roll(first, 13 * number, 1)[:, :width]
            cv2.imwrite(str(tmp_path / 'in' / f'{number}.png'), image)
        return str(path), checkpoint, tmp_path / 'in'

    return get


def numbers(folder, task):
    """The results as numbers, in the order of the images."""
    if task == 'classification':
        rows = sorted(table(folder / 'predictions.csv'), key=lambda row: (row['image'], row['class_id']))
        return np.array([float(row['probability']) for row in rows])
    if task == 'detection':
        rows = json.loads((folder / 'results.json').read_text())
        return np.array([[row['image_id'], *row['bbox'], row['score']] for row in rows])
    return np.concatenate([np.asarray(Image.open(path)).ravel() for path in sorted((folder / 'labels').iterdir())])


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
def test_images_of_several_sizes_do_not_depend_on_the_batch(mixed, tmp_path, task, options):
    model = mixed(task)
    for size in (1, 4):
        assert run(model, tmp_path / str(size), batch_size=size, **options).images == 5
    folders = tmp_path / '1', tmp_path / '4'
    one, four = (numbers(folder, task) for folder in folders)
    assert len(one) and np.abs(one - four).max() < (0.02 if task == 'detection' else 1e-5)
    if 'features' in options:
        one, four = (np.load(folder / 'features.npy') for folder in folders)
        assert one == pytest.approx(four, abs=1e-4) and one.std(0).max() > 1e-3


def test_a_run_continues_with_another_batch_size(mixed, tmp_path, monkeypatch, parts_of_two):
    model = mixed('segmentation')
    run(model, tmp_path / 'once')
    original = BatchPredictor._step

    def step(self, data):
        if any(each['data_samples'].img_path == '3.png' for each in data):
            raise KeyboardInterrupt
        return original(self, data)

    monkeypatch.setattr(BatchPredictor, '_step', step)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / 'twice')
    monkeypatch.setattr(BatchPredictor, '_step', original)
    assert run(model, tmp_path / 'twice', batch_size=3).resumed == 2
    assert contents(tmp_path / 'once') == contents(tmp_path / 'twice')


def test_another_run_does_not_continue_it(model_of, tmp_path):
    model = model_of('classification')
    run(model, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(PredictionError, match='with different top: give another folder'):
        run(model, tmp_path, top=2)
    content = torch.load(model[1])
    content['state_dict']['head.fc.bias'] += 1
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(PredictionError, match='different weights'):
        run((model[0], str(tmp_path / 'other.pth'), model[2]), tmp_path)
    with pytest.raises(PredictionError, match='different images'):
        run(model, tmp_path, [str(model[2] / 'star')])
    (tmp_path / 'other.pth').unlink()
    assert contents(tmp_path) == before


def test_several_processes_write_the_same(model_of, tmp_path):
    """The command itself; three parts, so that both processes have some."""
    config, checkpoint, images = model_of('classification')
    image = next(images.rglob('*.jpg')).read_bytes()
    (tmp_path / 'in').mkdir()
    for number in range(2 * module.PART + 3):
        (tmp_path / 'in' / f'{number}.jpg').write_bytes(image if number % 50 else image[:99])
    arguments = (config, checkpoint, tmp_path / 'in', '--workers', 0, '--device', 'cpu', '--out', tmp_path / 'two')
    one, two = run_ranks(2, 'predict.py', *arguments, '--features')
    assert 'predictions.csv' in one.stdout and '3 of 131 images skipped' in one.stdout
    assert 'predictions.csv' not in two.stdout
    run((config, checkpoint, tmp_path / 'in'), tmp_path / 'one', features=True)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_what_does_not_decode_is_reported(model_of, tmp_path, parts_of_two):
    model = model_of('segmentation')
    folder = tmp_path / 'in'
    (folder / 'below').mkdir(parents=True)
    for number, path in enumerate(sorted(model[2].iterdir())):
        (folder / 'below' / f'{number}.jpg').write_bytes(path.read_bytes())
    (folder / 'below' / '1.jpg').write_bytes((folder / 'below' / '0.jpg').read_bytes()[:300])
    (folder / 'below' / '2.jpg').write_bytes(b'')
    (folder / 'list.txt').write_text('# some\nbelow/0.jpg\n\nbelow/1.jpg\nbelow/gone.jpg\n')
    done = run(model, tmp_path / 'out', [str(folder)], batch_size=2, features=True)
    assert done.skipped == 2 and len(table(tmp_path / 'out' / 'labels.csv')) == 3
    assert [row['image'] for row in table(tmp_path / 'out' / 'skipped.csv')] == ['1.jpg', '2.jpg']
    assert 'empty' in table(tmp_path / 'out' / 'skipped.csv')[1]['reason']
    assert [row['image'] for row in table(tmp_path / 'out' / 'features.csv')] == ['0.jpg', '3.jpg', '4.jpg']
    assert np.load(tmp_path / 'out' / 'features.npy').shape == (3, 32)
    done = run(model, tmp_path / 'listed', [str(folder / 'list.txt')])
    assert done.images == 3 and done.skipped == 2
    assert 'does not exist' in table(tmp_path / 'listed' / 'skipped.csv')[1]['reason']
    with pytest.raises(PredictionError, match='all 1 images were skipped; first reason: .*empty'):
        run(model, tmp_path / 'none', [str(folder / 'below' / '2.jpg')])


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_prepared_is_skipped(mixed, tmp_path, workers):
    model = mixed('segmentation')
    cv2.imwrite(str(model[2] / 'thin.png'), np.zeros((1, 2000, 3), np.uint8))
    assert run(model, tmp_path / 'out', batch_size=3, workers=workers).skipped == 1
    (row,) = table(tmp_path / 'out' / 'skipped.csv')
    assert row['image'] == 'thin.png'
    assert row['reason'].startswith('thin.png (2000x1 pixels) cannot be prepared by the test pipeline (')
    assert row['reason'].endswith('check the test pipeline of the config, or remove this image from the input')


def test_a_failure_names_the_image(model_of, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError('no luck')

    model = model_of('segmentation')
    names = [path.name for path in sorted(model[2].iterdir())]
    monkeypatch.setattr(module, 'draw_sample', fail)
    with pytest.raises(
        LibraryError, match=f'drawing the predictions of {names[0]} failed: .*no luck.* Omit --draw, or'
    ):
        run(model, tmp_path / 'drawn', draw=True)
    monkeypatch.setattr(BatchPredictor, '_step', fail)
    message = f'predicting {", ".join(names[:3])} and 1 more with .*.py failed: .*no luck.* Check the config'
    with pytest.raises(LibraryError, match=message):
        run(model, tmp_path / 'batch', batch_size=4)


def test_an_image_of_one_pixel_is_drawn(model_of, tmp_path):
    model = model_of('segmentation')
    cv2.imwrite(str(tmp_path / 'one.png'), np.zeros((1, 1, 3), np.uint8))
    run(model, tmp_path / 'out', [str(tmp_path / 'one.png')], draw=True)
    assert cv2.imread(str(tmp_path / 'out' / 'drawn' / 'one.png')).shape == (1, 1, 3)


def test_features_are_the_mean_of_the_last_output(model_of, tmp_path):
    model = model_of('classification')
    run(model, tmp_path, batch_size=3, features=True)
    predictor = BatchPredictor(load_config(model[0]), model[1], Options(device='cpu'))
    features = np.load(tmp_path / 'features.npy')
    for row, expected in zip(table(tmp_path / 'features.csv'), features):
        pixels = read_image(model[2] / row['image'])
        data = module.prepare(predictor.pipeline, pixels, row['image'], 0)
        inputs = predictor.network.data_preprocessor(dict(inputs=[data['inputs']], data_samples=None))['inputs']
        with torch.no_grad():
            outputs = predictor.network.backbone(inputs)
        assert outputs[-1].mean((2, 3))[0].numpy() == pytest.approx(expected, abs=1e-5)
    assert len(features) == 5 and features.std(0).max() > 0


@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_mixed_precision_and_augmentation_change_little(model_of, tmp_path, task):
    """Neither gives exactly what is given without, and both something near to it."""
    model = model_of(task)
    found = {}
    for name in ('none', 'amp', 'tta'):
        options = dict(top=0) if task == 'classification' else {}
        run(model, tmp_path / name, amp=name == 'amp', tta=name == 'tta', **options)
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


#: Options beside --optimize, and how far it may change probabilities, boxes and scores, and the share of pixels.
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
def test_optimized_predictions_are_the_same(model_of, tmp_path, task, options, tolerance):
    if 'tile' in options:
        pytest.importorskip('sahi')
    model = model_of(task)
    image = [str(sorted(path for path in model[2].rglob('*') if path.is_file())[0])]
    for name in ('plain', 'optimized'):
        run(model, tmp_path / name, image, optimize=name == 'optimized', **options)
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
def test_optimize_changes_the_network_and_is_part_of_a_run(model_of, tmp_path, task):
    model = model_of(task)
    config = load_config(model[0])
    network = BatchPredictor(config, model[1], Options(device='cpu', optimize=True)).network
    assert network.state_dict().keys() != build_model(load_config(model[0])).state_dict().keys()
    image = [str(sorted(path for path in model[2].rglob('*') if path.is_file())[0])]
    run(model, tmp_path, image)
    with pytest.raises(PredictionError, match='results of another run, with different optimize'):
        run(model, tmp_path, image, optimize=True)


def test_nothing_to_optimize(tmp_path):
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


def test_augmentation_that_the_config_lacks(model_of, tmp_path):
    with pytest.raises(UserError, match='--tta needs tta_model'):
        run(model_of('detection'), tmp_path / 'out', tta=True)
    assert not (tmp_path / 'out').exists()


def test_tiles_of_a_segmentor_are_put_together(model_of, tmp_path, monkeypatch):
    """With a model that says of each pixel what it is, tiles change nothing."""
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
    run((str(config), model[1], None), tmp_path / 'out', [str(tmp_path / 'a.png')], tile=64, batch_size=4)
    assert len(sizes) > 4 and set(sizes) == {(64, 64)}
    assert (np.asarray(Image.open(tmp_path / 'out' / 'labels' / 'a.png')) == image[..., 0] // 64).all()


def test_tiles_of_a_detector_find_what_is_in_each(model_of, tmp_path):
    pytest.importorskip('sahi')
    model = model_of('detection')
    path = sorted(model[2].iterdir())[0]
    tile = cv2.imread(str(path))
    cv2.imwrite(str(tmp_path / 'four.png'), np.tile(tile, (2, 2, 1)))
    cv2.imwrite(str(tmp_path / 'one.png'), tile)
    run(model, tmp_path / 'four', [str(tmp_path / 'four.png')], tile=64, overlap=0.0, draw=True, draw_score_thr=0.0)
    run(model, tmp_path / 'one', [str(tmp_path / 'one.png')])
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


def test_frames_of_a_video(model_of, tmp_path):
    model = model_of('classification')
    writer = cv2.VideoWriter(str(tmp_path / 'clip.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), 10, (64, 64))
    for number in range(5):
        writer.write(np.full((64, 64, 3), 40 * number, np.uint8))
    writer.release()
    inputs = [str(model[2] / 'star'), str(tmp_path / 'clip.mp4')]
    done = run(model, tmp_path / 'out', inputs, batch_size=2, draw=True, top=1)
    assert done.images == 6 and not done.skipped
    names = [row['image'] for row in table(tmp_path / 'out' / 'predictions.csv')]
    assert [name.endswith(f'clip.mp4/{number:06d}.png') for number, name in enumerate(names[1:])] == [True] * 5
    drawn = sorted((tmp_path / 'out' / 'drawn').rglob('clip.mp4/*.png'))
    assert len(drawn) == 5
    assert cv2.imread(str(drawn[4]))[-20:].mean() > 100 > cv2.imread(str(drawn[1]))[-20:].mean()


def test_parquet(model_of, tmp_path):
    pytest.importorskip('pyarrow')
    from pyarrow import parquet

    run(model_of('classification'), tmp_path, table='parquet')
    found = parquet.read_table(tmp_path / 'predictions.parquet').to_pydict()
    assert len(found['image']) == 25 and found['rank'][:5] == [1, 2, 3, 4, 5] and found['class_id'][0] in range(5)


@pytest.mark.parametrize(
    'task, options, message',
    [
        ('classification', dict(batch_size=0), '--batch-size 0 --workers 0: expected a batch size of at least 1'),
        ('classification', dict(tile=64), '--tile: a classifier'),
        ('classification', dict(coco='a.json'), '--coco is for detection, but the config is for classification'),
        ('classification', dict(table='xml'), '--format xml: expected one of csv, parquet'),
        ('classification', dict(features=True, tta=True), '--features cannot be combined with --tta'),
        ('detection', dict(tile=64, features=True), '--tile cannot be combined with --features or --tta'),
        ('detection', dict(tile=8), '--tile 8 --overlap 0.2: expected a tile of at least 32'),
        (
            'detection',
            dict(coco='gone.json'),
            '--coco gone.json cannot be read as COCO annotations .*FileNotFoundError',
        ),
        ('detection', dict(top=3), '--top is for classification, but the config is for detection: omit --top'),
        ('segmentation', dict(table='parquet'), '--format is for classification, but the config is for segmentation'),
        ('classification', dict(score_thr=0.5), '--score-thr is for detection, but the config is for classification'),
        ('segmentation', dict(draw_score_thr=0.5), '--draw-score-thr is for detection'),
        ('detection', dict(draw_score_thr=0.5), '--draw-score-thr has no effect without --draw: add --draw, or omit'),
        ('detection', dict(overlap=0.5), '--overlap has no effect without --tile'),
        ('classification', dict(top=-1), '--top -1: expected a number of classes, or 0 for all'),
        ('detection', dict(score_thr=7.0), '--score-thr 7: expected a number from 0 to 1'),
        ('detection', dict(draw=True, draw_score_thr=-1.0), '--draw-score-thr -1: expected a number from 0 to 1'),
        ('classification', dict(device='banana'), '--device banana cannot be used here .*: use --device cpu'),
        ('classification', dict(device='cuda:99'), '--device cuda:99 cannot be used here'),
    ],
)
def test_options_that_do_not_go_together(model_of, tmp_path, task, options, message):
    with pytest.raises(UserError, match=message):
        run(model_of(task), tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_folders_that_results_must_not_go_to(model_of, tmp_path):
    model = model_of('classification')
    with pytest.raises(PredictionError, match='is inside .*, whose images are predicted'):
        run(model, model[2] / 'out')
    (tmp_path / 'list.txt').write_text(f'{model[2]}\n')
    with pytest.raises(PredictionError, match='is inside .*, whose images are predicted'):
        run(model, model[2] / 'out', [str(tmp_path / 'list.txt')])
    (tmp_path / 'file').write_text('')
    with pytest.raises(PredictionError, match='file is a file: give a folder'):
        run(model, tmp_path / 'file')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'run.json').write_text('[1]')
    with pytest.raises(PredictionError, match='run.json was not written by this command'):
        run(model, tmp_path / 'out')
    with pytest.raises(ImageError, match='gone does not exist'):
        run(model, tmp_path / 'new', [str(tmp_path / 'gone')])
    assert not (tmp_path / 'new').exists()
