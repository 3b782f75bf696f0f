"""Export of small models of all three tasks: what the files compute, what stands in them, and every error."""

import json
import os

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn
from harness import run_tool
from mmengine.registry import DefaultScope

from fcvit_mm.apis.load import load_network
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError
from fcvit_mm.export import formats
from fcvit_mm.export.exporter import export_model, format_report, speed_size
from fcvit_mm.export.formats import ExportError, load_exported, random_images, write_export
from fcvit_mm.export.parts import AdaptiveAvgPool2d, free_of_sizes_, take_part
from fcvit_mm.export.quantization import labelled_images
from fcvit_mm.files import WriteError

# One block a stage, and few of them: recording takes seconds for each.
BACKBONE = """dict(
    type='FCViT', arch=dict(depths=(1, 1, 1, 1), channels=(16, 24, 32, 40), mlp_ratios=(2, 2, 2, 2)),
    kernel_sizes=(5, ), layer_scale_init_value=0.5, out_indices={stages})"""
CONFIGS = {
    'classification': """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=3, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='ImageClassifier', backbone={backbone}, neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=48, edge='short'),
    dict(type='CenterCrop', crop_size=40), dict(type='PackInputs')]))
""",
    'detection': """
default_scope = 'mmdet'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32), backbone={backbone},
    neck=dict(type='FPN', in_channels=[16, 24], out_channels=8, num_outs=3),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=8, stacked_convs=1, feat_channels=8,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                              strides=[4, 8, 16]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder')))
""",
    'segmentation': """
default_scope = 'mmseg'
custom_imports = dict(imports=['fcvit_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)), backbone={backbone},
    decode_head=dict(
        type='UPerHead', in_channels=[16], in_index=[0], pool_scales=(1, 6), channels=8,
        num_classes=4, norm_cfg=dict(type='BN'), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
""",
}
LIBRARIES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}


@pytest.fixture(autouse=True)
def no_scope_left_behind():
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Task -> config and checkpoint of a small model, with norms that are not as they started."""
    made = {}

    def get(task):
        pytest.importorskip(LIBRARIES[task])
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            backbone = BACKBONE.format(stages='(0, 1)' if task == 'detection' else '(0, )')
            (folder / 'small.py').write_text(CONFIGS[task].format(backbone=backbone))
            torch.manual_seed(0)
            model = load_network(str(folder / 'small.py')).model
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    nn.init.uniform_(parameter, 0.5, 1.5)
            content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b', 'c'))))
            torch.save(content, folder / 'small.pth')
            made[task] = str(folder / 'small.py'), str(folder / 'small.pth')
        return made[task]

    return get


@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    """A folder with a folder of two images for each of three classes."""
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for name in 'abc':
        (folder / name).mkdir()
        for index in range(2):
            cv2.imwrite(str(folder / name / f'{index}.png'), rng.integers(0, 255, (50, 60, 3), np.uint8))
    return folder


def needs(kind):
    if kind != 'torchscript':
        if torch.__version__ < '2.9':
            pytest.skip('the exporter of ONNX started from TorchScript before')
        for package in formats.FORMATS[kind].packages:
            pytest.importorskip(package)


@pytest.fixture(scope='module')
def exported(saved, samples, tmp_path_factory):
    """Kind of file -> the classifier's file and the report on it; ONNX in 8 bits, too."""
    made = {}

    def get(kind):
        needs(kind)
        if kind not in made:
            out = str(tmp_path_factory.mktemp(kind) / 'new' / f'small{formats.FORMATS[kind].suffix}')
            int8 = dict(int8=str(samples), labelled=str(samples), calibration=4) if kind == 'onnx' else {}
            made[kind] = out, export_model(*saved('classification'), out, kind, rounds=2, **int8)
        return made[kind]

    return get


@pytest.mark.parametrize('kind', formats.FORMATS)
def test_a_classifier_gives_the_scores_of_its_library(kind, saved, exported):
    out, report = exported(kind)
    images = random_images((3, 3, 45, 71))
    with torch.no_grad():
        expected = load_network(*saved('classification')).model.predict(images)
    (found,) = load_exported(out, kind)(images)
    torch.testing.assert_close(found, torch.stack([sample.pred_score for sample in expected]), rtol=1e-4, atol=1e-6)
    # Sizes and batches that it was compared on: odd, and another batch than the one recorded.
    assert {found['shape'] for found in report['differences']} == set(formats.CHECKED)
    assert report['file_bytes'] == os.path.getsize(out) > report['pytorch_bytes'] > 10_000
    assert report['speed']['size'] == [40, 40] and formats.FORMATS[kind].runtime in report['speed']['ms_per_image']
    text = format_report(json.loads(json.dumps(report)))
    assert formats.FORMATS[kind].runtime in text and 'PyTorch' in text and '3x63x190' in text


def test_a_segmentor_gives_the_logits_of_its_library(saved, tmp_path):
    needs('onnx')
    config, checkpoint = saved('segmentation')
    out = str(tmp_path / 'small.onnx')
    export_model(config, checkpoint, out, 'onnx', rounds=0)
    images = random_images((2, 3, 61, 83))
    model = load_network(config, checkpoint).model
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(61, 83))])
    (found,) = load_exported(out, 'onnx')(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_detectors_neck(saved, tmp_path):
    needs('onnx')
    config, checkpoint = saved('detection')
    out = str(tmp_path / 'small.onnx')
    report = export_model(config, checkpoint, out, 'onnx', part='neck', rounds=0)
    images = random_images((1, 3, 77, 141))
    with torch.no_grad():
        expected = load_network(config, checkpoint).model.extract_feat(images)
    found = load_exported(out, 'onnx')(images)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert 'NMS are left to mmdeploy' in format_report(report)


def test_an_optimized_classifier(saved, exported, tmp_path):
    out = str(tmp_path / 'small.onnx')
    _, report = exported('onnx')
    # Compared with the model as it is, whatever was exported.
    optimized = export_model(*saved('classification'), out, 'onnx', optimize=True, rounds=0)
    assert optimized['optimized'] and 'optimised for inference' in format_report(optimized)
    assert optimized['file_bytes'] < report['file_bytes']  # norms and scales are in the convolutions


def test_what_an_onnx_file_tells(exported):
    out, _ = exported('onnx')
    import onnx

    model = onnx.load(out)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told['mean']) == [123.675, 116.28, 103.53] and json.loads(told['classes']) == ['a', 'b', 'c']
    assert told['channel_order'] == 'RGB' and json.loads(told['size']) == [40, 40]
    assert 'CenterCrop' in told['test_pipeline'] and told['task'] == 'classification'
    sides = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert sides == [['batch', 3, 'height', 'width'], ['batch', 3]]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ['images', 'scores']
    # The exporter's notes would tell everyone where the code stood on this machine.
    assert b'.py' not in model.SerializeToString()


def test_what_the_other_files_tell(exported):
    extra = {'metadata.json': ''}
    torch.jit.load(exported('torchscript')[0], _extra_files=extra)
    assert json.loads(extra['metadata.json'])['channel_order'] == 'RGB'
    out, _ = exported('torch_export')
    extra = {'metadata.json': ''}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra['metadata.json'])['part'] == 'model'


def test_int8(exported):
    out, report = exported('onnx')
    found = report['int8']
    assert sorted(os.listdir(os.path.dirname(out))) == ['small.onnx', 'small_int8.onnx']  # and nothing else
    assert found['calibrated_on'] == 4 and found['images'] == 6
    assert found['file_bytes'] == os.path.getsize(found['file'])
    forms = found['forms']
    assert forms['PyTorch'] == dict(
        mean_abs_difference=0.0, max_abs_difference=0.0, agreement=1.0, accuracy=forms['PyTorch']['accuracy']
    )
    assert (
        forms['ONNX Runtime']['mean_abs_difference'] < 1e-5 < forms['ONNX Runtime, INT8']['mean_abs_difference'] < 0.1
    )
    assert len(report['speed']['ms_per_image']) == 3
    assert 'agreement' in format_report(report) and 'small_int8.onnx' in format_report(report)


def test_accuracy_is_that_of_the_labels(samples):
    from fcvit_mm.export.quantization import measure_drift

    labelled = labelled_images(str(samples), ('c', 'b', 'a'), 3)
    assert [sample.label for sample in labelled] == [2, 2, 1, 1, 0, 0]
    scores = {'always c': torch.tensor([[0.7, 0.2, 0.1]]), 'always a': torch.tensor([[0.2, 0.1, 0.7]])}
    found = measure_drift(
        {name: lambda images, value=value: value for name, value in scores.items()},
        [*labelled, labelled[0]],
        lambda path: path,
        True,
    )
    assert [form['accuracy'] for form in found['forms'].values()] == pytest.approx([2 / 7, 3 / 7])
    assert found['forms']['always a']['agreement'] == 0
    assert found['forms']['always a']['mean_abs_difference'] == pytest.approx((0.5 + 0.1 + 0.6) / 3)


@pytest.mark.parametrize('size', [(6, 6), (7, 11), (1, 5), (23, 4)], ids=str)
@pytest.mark.parametrize('output_size', [1, 6, (2, 3)], ids=str)
def test_pooling_is_pytorchs(size, output_size):
    x = random_images((2, 3, *size))
    torch.testing.assert_close(AdaptiveAvgPool2d(output_size)(x), nn.AdaptiveAvgPool2d(output_size)(x))


def test_a_semantic_fpn_is_freed_of_sizes():
    wrappers = pytest.importorskip('mmseg.models.utils.wrappers')
    upsample = wrappers.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), upsample, nn.AdaptiveAvgPool2d((1, 1)))
    x = random_images((1, 3, 9, 5))
    expected = model[:2](x)
    assert free_of_sizes_(model)[1] is not upsample and isinstance(model[2], nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(model[:2](x), expected)


class Part(nn.Module):
    """Something to export that is no model: a function."""

    output = 'scores'

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


@pytest.mark.parametrize(
    'kind, function, message',
    [
        ('onnx', torch.special.bessel_j0, r'the operator \w+\.(special_)?bessel_j0 stops it'),
        ('torchscript', lambda x: _Double.apply(x), 'the operator _Double stops it'),
        (
            'torch_export',
            lambda x: torch.from_numpy(x.numpy() * 2),
            r'no operator is named, called in .*test_export.py',
        ),
        ('torchscript', lambda x: x * int(x.shape[2]), r'differs from PyTorch by .* on 1 images of 97x131'),
        ('torchscript', lambda x: x[:, :, : int(x.shape[2]) // 2], 'a size was recorded as a constant'),
        ('torchscript', lambda x: x * float('nan'), 'differs from PyTorch by nan'),
        (
            'torchscript',
            lambda x: x.reshape(int(x.shape[0]), 3, int(x.shape[2]), -1),
            'does not run on 1 images of 97x131',
        ),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_no_file(kind, function, message, tmp_path):
    needs(kind)
    out = tmp_path / f'a{formats.FORMATS[kind].suffix}'
    out.write_text('what stood there')
    with pytest.raises(ExportError, match=message):
        write_export(Part(function), str(out), kind)
    assert os.listdir(tmp_path) == [out.name] and out.read_text() == 'what stood there'


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match='could not be written'):
        write_export(Part(lambda x: x * 2), str(tmp_path / 'file' / 'a.pt'), 'torchscript')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='caffe'), "format 'caffe', expected one of onnx, torch_export, torchscript"),
        (dict(out='a.onnx'), r'--out .*a.onnx: a file for --format torchscript ends in .pt'),
        (dict(part='head'), "part 'head', expected one of model, neck, backbone"),
        (dict(rounds=-1), '--rounds -1, expected 0 or more'),
        (dict(size=(0, 3)), '--size 0 3: expected a height and a width'),
        (dict(size=(1, 2, 3)), '--size 1 2 3: expected a height and a width'),
        (dict(checkpoint='nowhere.pth'), 'nowhere.pth does not exist'),
        (dict(config='nowhere.py'), 'config nowhere.py does not exist'),
        (dict(int8='.'), r"--int8 is ONNX Runtime's, --format torchscript has none"),
        (dict(labelled='.'), '--labelled is what an 8-bit file is measured on: give --int8 FOLDER too'),
        (dict(options={'model.neck': None}, part='neck'), 'ImageClassifier has no neck: take --part backbone or'),
        (
            dict(options={'model.head.type': 'MultiLabelLinearClsHead'}),
            'has a head of MultiLabelLinearClsHead, expected',
        ),
        (
            dict(
                options={'model.backbone': dict(_delete_=True, type='ResNet', depth=18), 'model.head.in_channels': 512},
                optimize=True,
            ),
            '--optimize: Scores holds no backbone of fcvit_mm',
        ),
    ],
)
def test_arguments_that_cannot_work(arguments, message, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = saved('classification')
    given = dict(dict(config=config, checkpoint=checkpoint, out='a.pt', kind='torchscript', rounds=0), **arguments)
    if 'options' in arguments:
        monkeypatch.setattr('fcvit_mm.apis.load._load_weights', lambda model, checkpoint: None)
    with pytest.raises(UserError, match=message):
        export_model(**given)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(int8='nowhere'), '--int8 nowhere is no folder'),
        (dict(int8='empty'), 'no images .* below empty'),
        (dict(int8='{images}', calibration=0), '--calibration-images 0, expected at least 1'),
        (dict(int8='{images}', labelled='nowhere'), '--labelled nowhere is no folder'),
        (dict(int8='{images}', labelled='{images}/a'), 'in folders of .*/a, expected one folder for each class'),
        (dict(int8='{images}', labelled='{images}', part='backbone'), 'a classifier, the graph gives features'),
        (dict(int8='broken'), 'broken.png does not decode'),
    ],
)
def test_folders_that_cannot_work(arguments, message, saved, samples, tmp_path, monkeypatch):
    needs('onnx')
    monkeypatch.chdir(tmp_path)
    for name in ('empty', 'broken'):
        (tmp_path / name).mkdir()
    (tmp_path / 'broken' / 'broken.png').write_bytes(b'\x89PNG')
    arguments = {
        key: value.format(samples=samples) if isinstance(value, str) else value for key, value in arguments.items()
    }
    with pytest.raises(UserError, match=message):
        export_model(*saved('classification'), 'a.onnx', 'onnx', rounds=0, **arguments)
    assert not (tmp_path / 'a.onnx').exists()


def test_labels_of_other_classes(samples, tmp_path):
    with pytest.raises(UserError, match=r'has 3 folders \(a, b, c\), expected one for each of the 4 classes \(w, x, '):
        labelled_images(str(samples), tuple('wxyz'), 4)
    with pytest.raises(UserError, match='in folders of .*, expected one folder for each class'):
        labelled_images(str(samples / 'a'), None, 3)
    # Other names in the checkpoint, but as many: in order.
    assert labelled_images(str(samples), tuple('xyz'), 3)[-1].label == 2


def test_a_whole_detector_is_left_to_mmdeploy(saved, tmp_path):
    with pytest.raises(
        UserError,
        match=r'RetinaNet is a detector, which is not exported whole: RPN or dense head, RoI '
        r'heads.*mmdeploy.*--part neck',
    ):
        export_model(*saved('detection'), str(tmp_path / 'a.pt'), 'torchscript')


def test_models_of_other_forms():
    with pytest.raises(UserError, match='Linear has no backbone in model.backbone'):
        take_part(nn.Linear(2, 2), 'classification')
    pytest.importorskip('mmseg')
    cascade = nn.Module()
    cascade.backbone, cascade.decode_head = nn.Identity(), nn.ModuleList()
    with pytest.raises(UserError, match='has a decode_head of ModuleList, expected a single one of mmseg'):
        take_part(cascade, 'segmentation')


def test_another_models_checkpoint(saved, tmp_path):
    config, _ = saved('classification')
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='other.pth does not fit the config'):
        export_model(config, str(tmp_path / 'other.pth'), str(tmp_path / 'a.pt'), 'torchscript')


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"onnx is not installed: pip install 'fcvit_mm\[export\]'"):
        formats.check_format('a.onnx', 'onnx')
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    with pytest.raises(UserError, match='--format torch_export needs torch 2.9 or newer, found 2.1.2'):
        formats.check_format('a.pt2', 'torch_export')
    formats.check_format('a.pt', 'torchscript')


def test_the_size_that_speed_is_measured_at(saved):
    from fcvit_mm.engine.config import load_config

    classifier, segmentor = (load_config(saved(task)[0]) for task in ('classification', 'segmentation'))
    assert speed_size(classifier, ()) == (40, 40) and speed_size(classifier, (7,)) == (7, 7)
    assert speed_size(segmentor, ()) == (512, 512) and speed_size(segmentor, (7, 9)) == (7, 9)


def test_the_command(saved, tmp_path):
    config, checkpoint = saved('classification')
    done = run_tool(
        'export.py',
        config,
        checkpoint,
        '--format',
        'torchscript',
        '--out',
        tmp_path / 'a.pt',
        '--part',
        'backbone',
        '--optimize',
        '--size',
        50,
        '30',
        '--rounds',
        1,
        '--json',
        tmp_path / 'a.json',
    )
    assert 'optimised for inference' in done.stdout and '50x30' in done.stdout
    report = json.loads((tmp_path / 'a.json').read_text())
    assert report['part'] == 'backbone' and report['speed']['size'] == [50, 30]
    with torch.no_grad():
        (found,) = load_exported(str(tmp_path / 'a.pt'), 'torchscript')(random_images((1, 3, 33, 34)))
    backbone = load_network(config, checkpoint).model.backbone
    with torch.no_grad():
        (expected,) = backbone(random_images((1, 3, 33, 34)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
