"""Complete detectors: detections agree with mmdet, in PyTorch, in exported files and with the example of the docs.

By default, each detector is traced, and a small one is written as ONNX and used with the example, which takes seconds.
With ``LONG_EXPORTS=1``, all are written in all formats, and the example also runs with masks, which takes minutes.
"""

import importlib
import json
import os
import re
import runpy

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn
from detectors import DETECTORS, build_detector, drawn_image
from harness import ROOT
from plain_net import PlainNet

from fcvit_mm.export.comparison import check_detections, compare
from fcvit_mm.export.detectors.detections import Detections
from fcvit_mm.export.detectors.steps import grouped_nms
from fcvit_mm.export.errors import ExportError
from fcvit_mm.export.formats import FORMATS, OPSET, write_export
from fcvit_mm.export.matching import match
from fcvit_mm.export.parts import FromPixels, Preparation, random_images
from fcvit_mm.export.quantization import Labelled, measure_detections, quantize
from fcvit_mm.export.runtimes import load_exported

LONG = bool(os.environ.get('LONG_EXPORTS'))
#: Odd sizes, a size smaller than the largest stride, and one larger than that of the recorded example.
SIZES = ((97, 131), (27, 40), (224, 160))
#: Detectors that are compiled by AOTInductor: two-stage detectors with and without convolutions of regions, and
#: one-stage detectors with and without masks.
COMPILED = ('mask_rcnn', 'faster_rcnn', 'retinanet', 'rtmdet_ins')
#: The normalization of mmdet's stock configs.
USUAL = Preparation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 'RGB')
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(150, 90), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('ori_shape', 'img_shape', 'scale_factor')),
]
#: One level with one block, which is written as ONNX by default.
SMALL: dict = dict(
    backbone=dict(type=PlainNet, depths=(1,), channels=(8,), out_indices=(0,)),
    neck=dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1),
    bbox_head__anchor_generator__strides=[4],
)


@pytest.mark.parametrize('name', DETECTORS)
@torch.no_grad()
def test_graph_agrees_with_mmdet(name):
    part = Detections(build_detector(name))
    for size in SIZES:
        images = random_images((1, 3, *size))
        expected, found = part.expected(images), part.complete(part(images), images)
        matches = match(expected, found)
        assert matches.expected == matches.found == matches.matched > 3, (size, matches)
        assert matches.score < 1e-5
        # In descending order of scores, as in mmdet.
        assert (found[1].diff() <= 0).all() and found[2].dtype == torch.int64


@pytest.mark.parametrize('name', DETECTORS)
@torch.no_grad()
def test_first_of_equal_scores_are_selected(name):
    """More scores are equal (0.5) than the limits allow; PyTorch's topk selects any of them."""
    model = build_detector(name)
    head = model.rpn_head if hasattr(model, 'rpn_head') else model.bbox_head
    for place, parameter in head.named_parameters():
        if '_cls' in place.split('.')[0] and parameter.ndim > 1:
            nn.init.zeros_(parameter)
    part = Detections(model)
    images = random_images((1, 3, 97, 131))
    expected, found = part.expected(images), part.complete(part(images), images)
    assert match(expected, found).matched == len(expected[0]) == len(found[0]) > 3


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('name', DETECTORS)
def test_files_agree_with_mmdet(name, kind, tmp_path, needs):
    needs(kind)
    if kind != 'torchscript' and not LONG:
        pytest.skip('takes minutes: set LONG_EXPORTS=1')
    if kind == 'aot_inductor' and name not in COMPILED:
        pytest.skip('compiles for minutes: four detectors are enough')
    part = Detections(build_detector(name))
    differences = write_export(part, str(tmp_path / f'a{FORMATS[kind].suffix}'), kind)
    assert len(differences) == 4 and all(found.matched == found.detections for found in differences)
    assert sum(found.detections for found in differences) > 20


@pytest.fixture(scope='module')
def onnx_files(tmp_path_factory, needs):
    """Return a function that exports a detector with pixels as input; with masks, it takes minutes."""
    made = {}

    def get(name):
        needs('onnx')
        if name == 'mask_rcnn' and not LONG:
            pytest.skip('takes a minute: set LONG_EXPORTS=1')
        if name not in made:
            part = FromPixels(Detections(build_detector(name, **(SMALL if name == 'retinanet' else {}))), USUAL)
            path = str(tmp_path_factory.mktemp('onnx') / 'a.onnx')
            metadata = dict(
                part.description(), preprocess='inside', classes='["a", "b"]', test_pipeline=json.dumps(PIPELINE)
            )
            write_export(part, path, 'onnx', metadata=metadata)
            made[name] = part, path
        return made[name]

    return get


IN_ONNX = pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn'])


@IN_ONNX
def test_onnx_file_has_only_standard_operators(onnx_files, name):
    part, path = onnx_files(name)
    model = pytest.importorskip('onnx').load(path)
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    used = {node.op_type for node in model.graph.node}
    assert {'NonMaxSuppression', 'TopK'} <= used and ('RoiAlign' in used) == (name == 'mask_rcnn')
    # One TopK per level, with the limit of the config: some runtimes limit it, and not all scores are sorted.
    assert sum(node.op_type == 'TopK' for node in model.graph.node) == (2 if name == 'mask_rcnn' else 1)
    sides = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == [1, 'height', 'width', 3]
    assert [value.name for value in model.graph.output] == list(part.names(4 if name == 'mask_rcnn' else 3))


@IN_ONNX
def test_outputs_without_detections_are_empty(onnx_files, name):
    """Without detections there are no regions, no masks and no largest coordinate."""
    part, path = onnx_files(name)
    run = load_exported(path, 'onnx')
    for shade in (0, 255):
        pixels = torch.full((1, 40, 50, 3), shade, dtype=torch.uint8)
        with torch.no_grad():
            expected = part.expected(pixels)
        found = run(pixels)
        assert len(found[0]) == len(expected[0])
    boxes = torch.zeros(0, 4)
    assert not len(grouped_nms(boxes, boxes[:, 0], boxes[:, 0].long(), dict(iou_threshold=0.5), 3))


@IN_ONNX
def test_example_of_the_docs_agrees_with_mmdet(onnx_files, name, tmp_path, monkeypatch, capsys):
    """mmdet resizes the image and maps boxes back; the scales of height and width differ by rounding."""
    part, path = onnx_files(name)
    from mmdet.apis import inference_detector
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    image = drawn_image(131, 203)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    (model,) = part.part.original
    model.cfg = None
    preprocessor = importlib.import_module('mmdet.models').DetDataPreprocessor
    model.data_preprocessor = preprocessor(USUAL.mean, USUAL.std, pad_size_divisor=32, bgr_to_rgb=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose([dict(type='mmdet.LoadImageFromNDArray'), *PIPELINE[1:]])
        expected = inference_detector(model, image, pipeline).pred_instances
    monkeypatch.setattr('sys.argv', ['detect_onnx.py', path, str(tmp_path / 'image.png'), str(tmp_path / 'drawn.png')])
    example = runpy.run_path(str(ROOT / 'docs' / 'examples' / 'detect_onnx.py'), run_name='__main__')
    found = example['Detector'](path)(image)
    found = [torch.from_numpy(found[key]) for key in ('boxes', 'scores', 'labels', 'masks') if key in found]
    masks = [expected.masks] if 'masks' in expected else []
    assert len(masks) == (name == 'mask_rcnn')
    matches = match([expected.bboxes, expected.scores, expected.labels, *masks], found)
    assert matches.expected == matches.found == matches.matched > 3 and matches.score < 1e-4
    drawn = cv2.imread(str(tmp_path / 'drawn.png'))
    assert drawn.shape == image.shape and (drawn != image).any()
    assert f'{matches.found} detections' in capsys.readouterr().out


class Found:
    """A replacement of the detector of the example."""

    def __init__(self, path):
        if 'segmentor' in path:
            raise ValueError('not a complete detector')

    def __call__(self, image):
        return dict(scores=np.ones(1))

    def draw(self, image, found):
        return image


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'usage: python detect_onnx.py detector.onnx image.jpg drawn.jpg'),
        (
            ['a.onnx', 'image.png', 'drawn'],
            'drawn: expected the name of an image that OpenCV writes, such as drawn.jpg',
        ),
        (['a.onnx', 'a.txt', 'drawn.png'], 'a.txt is not an image that OpenCV can read'),
        (['segmentor.onnx', 'image.png', 'drawn.png'], 'segmentor.onnx cannot be loaded: not a complete detector'),
        (['a.onnx', 'image.png', 'nowhere/drawn.png'], 'nowhere/drawn.png could not be written: its folder must exist'),
        (['a.onnx', 'image.png', 'drawn.png'], None),
    ],
)
def test_example_of_the_docs_reports_errors(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('image.png', drawn_image(20, 30))
    (tmp_path / 'a.txt').write_text('')
    main = runpy.run_path(str(ROOT / 'docs' / 'examples' / 'detect_onnx.py'))['main']
    monkeypatch.setitem(main.__globals__, 'Detector', Found)
    monkeypatch.setattr('sys.argv', ['detect_onnx.py', *arguments])
    if message is None:
        main()
        assert capsys.readouterr().out == '1 detections, best score 1.000: drawn.png\n'
        assert os.path.isfile('drawn.png')
        return
    with pytest.raises(SystemExit, match=message):
        main()
    assert not capsys.readouterr().out


@pytest.fixture
def example(tmp_path):
    """Return a function that builds the detector of the example for a file with one operator and this metadata."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')

    def build(**metadata):
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in 'ab']
        graph = onnx.helper.make_graph([onnx.helper.make_node('Relu', ['a'], ['b'])], 'a', value[:1], value[1:])
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid('', OPSET)])
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, str(tmp_path / 'file.onnx'))
        Detector = runpy.run_path(str(ROOT / 'docs' / 'examples' / 'detect_onnx.py'))['Detector']
        return Detector(str(tmp_path / 'file.onnx'))

    return build


def test_example_of_the_docs_refuses_other_files(example):
    with pytest.raises(ValueError, match='not a complete detector: export one with tools/export.py --format onnx'):
        example()
    steps = [dict(type='LoadImageFromFile'), dict(type='mmdet.TestTimeAug'), dict(type='PackDetInputs')]
    with pytest.raises(ValueError, match='the test pipeline has the step TestTimeAug: implement it in Detector.resize'):
        example(boxes='', classes='[]', test_pipeline=json.dumps(steps))


@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='Pad', size_divisor=32)],
        [dict(type='Resize', scale=(90, 64), keep_ratio=True), dict(type='Pad', size_divisor=32, pad_val=dict(img=7))],
        [dict(type='Resize', scale=(90, 64), keep_ratio=True), dict(type='Pad', pad_to_square=True, pad_val=114)],
        [dict(type='Pad', size=(100, 70)), dict(type='RandomFlip', prob=0.0)],
        [dict(type='Resize', scale_factor=0.5), dict(type='Pad', size=(1, 1))],
    ],
)
def test_example_of_the_docs_resizes_and_pads_as_mmdet_does(steps, example):
    pytest.importorskip('mmdet')
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    image = drawn_image(41, 60)
    with DefaultScope.overwrite_default_scope('mmdet'):
        expected = Compose([dict(type='mmdet.LoadImageFromNDArray'), *steps])(dict(img=image))
    pipeline = json.dumps([dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs')])
    found, scale = example(boxes='', classes='[]', test_pipeline=pipeline).resize(image)
    assert found.shape == expected['img'].shape and (found == expected['img']).all()
    assert scale == pytest.approx(expected.get('scale_factor', (1, 1)))


@pytest.mark.parametrize('shape, dtype', [((4, 5, 3), 'float32'), ((4, 5), 'uint8'), ((0, 5, 3), 'uint8')])
def test_example_of_the_docs_refuses_invalid_images(shape, dtype, example):
    message = f'image is {dtype} {shape}, expected uint8 (H, W, 3) as cv2.imread reads it'
    with pytest.raises(ValueError, match=re.escape(message)):
        example(boxes='', classes='[]', test_pipeline='[]')(np.zeros(shape, dtype))


def test_8_bit_detector_has_similar_detections(onnx_files, tmp_path):
    part, path = onnx_files('retinanet')
    small = str(tmp_path / 'small.onnx')
    images = {str(seed): torch.from_numpy(drawn_image(64, 90, seed))[None] for seed in range(6)}
    quantize(path, small, images.values())
    runtimes = {'float': load_exported(path, 'onnx'), '8 bits': load_exported(small, 'onnx')}
    with torch.no_grad():
        found = measure_detections(part, runtimes, [Labelled(seed) for seed in images], images.__getitem__)
    assert found['images'] == 6
    drifts = found['runtimes']
    assert drifts['float']['same_detections'] == 1 and drifts['float']['max_abs_difference'] < 1e-5
    assert 0.7 < drifts['8 bits']['same_detections'] <= 1 and 1e-5 < drifts['8 bits']['max_abs_difference'] < 0.2
    # A runtime without detections matches none.
    none = measure_detections(part, {'none': lambda _: [x[:0] for x in part(images['0'])]}, [Labelled('0')], images.get)
    assert none['runtimes']['none'] == dict(detections=0, same_detections=0.0, max_abs_difference=0.0)


@pytest.mark.parametrize('name', ['rtmdet_ins'])
def test_example_of_the_docs_resizes_full_image_masks_as_mmdet_does(name):
    pytest.importorskip('onnxruntime')
    Detector = runpy.run_path(str(ROOT / 'docs' / 'examples' / 'detect_onnx.py'))['Detector']
    part = Detections(build_detector(name))
    images = random_images((1, 3, 70, 90))
    with torch.no_grad():
        boxes, _, _, masks = part(images)
        expected = part.complete((boxes, _, _, masks), images)[3]
    detector = Detector.__new__(Detector)
    detector.metadata = part.description()
    found = [detector.enlarge(mask, np.ones(2), (70, 90)) for mask in masks.numpy()]
    assert (np.array(found) == expected.numpy()).mean() > 0.9999 and expected.any() and not expected.all()


def test_different_detections_are_an_error():
    part = Detections(build_detector('retinanet'))
    images = random_images((1, 3, 64, 70))
    with torch.no_grad():
        boxes, scores, labels = part(images)
    with pytest.raises(ExportError, match='finds 20 objects on a 64x70 image, of which 0 match the 20'):
        compare(part, lambda _: (boxes, scores, labels + 1), 'onnx', images)


def test_one_of_a_hundred_detections_may_have_no_match():
    """Its score may be equal to the threshold up to rounding."""
    part = Detections(build_detector('retinanet'))
    images = random_images((1, 3, 64, 70))
    with torch.no_grad():
        outputs = part(images)

    def without(number):
        return lambda _: tuple(x[number:] for x in outputs)

    with pytest.raises(ExportError, match='finds 19 objects on a 64x70 image, of which 19 match the 20'):
        compare(part, without(1), 'onnx', images)
    with pytest.raises(ExportError, match='finds 18 objects on a 64x70 image, of which 18 match the 20'):
        compare(part, without(2), 'onnx', images, real=True)
    different = compare(part, without(1), 'onnx', images, real=True)
    assert different.real and (different.detections, different.found, different.matched) == (20, 19, 19)
    same = compare(part, without(0), 'onnx', images, real=True)
    check_detections('onnx', [different, *[same] * 4])
    with pytest.raises(
        ExportError,
        match='finds 79 objects on 4 images, of which 79 match the 80 detections of mmdet, fewer than 99%. Compare on '
        'more images with --compare, and if',
    ):
        check_detections('onnx', [different, *[same] * 3])
