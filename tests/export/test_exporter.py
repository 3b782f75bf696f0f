"""Export of small models of all tasks: results, metadata and errors."""

import json
import os
import shutil

import pytest
import torch
from torch import nn

from fcvit_mm.apis.load import load_network
from fcvit_mm.checkpoints import CheckpointError
from fcvit_mm.errors import UserError
from fcvit_mm.export import formats
from fcvit_mm.export.exporter import describe, export_model, format_report, input_reader, speed_size
from fcvit_mm.export.parts import Part, random_images
from fcvit_mm.export.runtimes import load_exported
from fcvit_mm.export.selection import take_part

#: Test-time augmentation with a single view.
TTA = dict(type='TestTimeAug', transforms=[[dict(type='PackInputs')]])


@pytest.fixture(scope='module')
def exported(saved, samples, tmp_path_factory, needs):
    """Return a function that exports the classifier in a format (ONNX also in 8 bits): the file and its report."""
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
def test_classifier_agrees_with_mmpretrain(kind, saved, exported):
    out, report = exported(kind)
    images = random_images((3, 3, 45, 71))
    with torch.no_grad():
        expected = load_network(*saved('classification')).model.predict(images)
    (found,) = load_exported(out, kind)(images)
    torch.testing.assert_close(found, torch.stack([sample.pred_score for sample in expected]), rtol=1e-4, atol=1e-6)
    # It was compared at odd sizes, and with another batch size than the recorded one.
    assert {found['shape'] for found in report['differences']} == set(formats.CHECKED)
    assert report['file_bytes'] == os.path.getsize(out) > report['pytorch_bytes'] > 10_000
    assert report['speed']['size'] == [40, 40] and formats.FORMATS[kind].runtime in report['speed']['ms_per_image']
    text = format_report(json.loads(json.dumps(report)))
    assert formats.FORMATS[kind].runtime in text and 'PyTorch' in text and '3x63x190' in text


@pytest.mark.parametrize('kind', formats.FORMATS)
def test_exported_file_accepts_any_memory_layout(kind, exported):
    out, _ = exported(kind)
    run = load_exported(out, kind)
    images = random_images((2, 3, 64, 96))
    cropped = images[:, :, :45, :71]
    (expected,) = run(cropped.contiguous())
    for given in (cropped, cropped.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(run(given)[0], expected, rtol=1e-4, atol=1e-6)


def test_segmentor_agrees_with_mmseg(saved, tmp_path, needs):
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


def test_neck_of_a_detector_agrees_with_mmdet(saved, tmp_path):
    config, checkpoint = saved('detection')
    out = str(tmp_path / 'small.pt')
    export_model(config, checkpoint, out, 'torchscript', part='neck', rounds=0)
    images = random_images((1, 3, 77, 141))
    with torch.no_grad():
        expected = load_network(config, checkpoint).model.extract_feat(images)
    found = load_exported(out, 'torchscript')(images)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_optimized_classifier_is_smaller(saved, exported, tmp_path):
    out = str(tmp_path / 'small.onnx')
    _, report = exported('onnx')
    # The optimized file is compared with the original model.
    optimized = export_model(*saved('classification'), out, 'onnx', optimize=True, rounds=0)
    assert optimized['optimized'] and 'optimized for inference' in format_report(optimized)
    assert optimized['file_bytes'] < report['file_bytes']  # norms and scales are fused into the convolutions


def test_metadata_of_an_onnx_file(exported):
    out, _ = exported('onnx')
    import onnx

    model = onnx.load(out)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata['mean']) == [123.675, 116.28, 103.53] and json.loads(metadata['classes']) == [
        'a',
        'b',
        'c',
    ]
    assert metadata['channel_order'] == 'RGB' and json.loads(metadata['size']) == [40, 40]
    assert 'CenterCrop' in metadata['test_pipeline'] and metadata['task'] == 'classification'
    sides = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert sides == [['batch', 3, 'height', 'width'], ['batch', 3]]
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ['images', 'scores']
    # Paths of this machine in the exporter's comments are removed.
    assert b'.py' not in model.SerializeToString()


def test_onnx_file_runs_in_openvino(saved, samples, tmp_path, needs):
    needs('onnx')
    pytest.importorskip('openvino')
    out = str(tmp_path / 'a.onnx')
    report = export_model(*saved('classification'), out, 'onnx', rounds=1, int8=str(samples), openvino=True)
    found = report['int8']['runtimes']
    assert list(found) == ['PyTorch', 'ONNX Runtime', 'ONNX Runtime, INT8', 'OpenVINO', 'OpenVINO, INT8']
    assert list(report['speed']['ms_per_image']) == list(found)
    assert found['OpenVINO']['agreement'] == 1 and found['OpenVINO']['max_abs_difference'] < 1e-5
    assert 1e-5 < found['OpenVINO, INT8']['mean_abs_difference'] < 0.1


def test_metadata_of_other_formats(exported):
    extra = {'metadata.json': ''}
    torch.jit.load(exported('torchscript')[0], _extra_files=extra)
    assert json.loads(extra['metadata.json'])['channel_order'] == 'RGB'
    out, _ = exported('torch_export')
    extra = {'metadata.json': ''}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra['metadata.json'])['part'] == 'model'
    if os.environ.get('LONG_EXPORTS'):
        from torch._inductor import aoti_load_package

        assert aoti_load_package(exported('aot_inductor')[0]).get_metadata()['part'] == 'model'


def test_8_bit_classifier_has_similar_scores(exported):
    out, report = exported('onnx')
    found = report['int8']
    assert sorted(os.listdir(os.path.dirname(out))) == ['small.onnx', 'small_int8.onnx']  # and nothing else
    assert found['calibrated_on'] == 4 and found['images'] == 6
    assert found['file_bytes'] == os.path.getsize(found['file'])
    runtimes = found['runtimes']
    assert runtimes['PyTorch'] == dict(
        mean_abs_difference=0.0, max_abs_difference=0.0, agreement=1.0, accuracy=runtimes['PyTorch']['accuracy']
    )
    assert (
        runtimes['ONNX Runtime']['mean_abs_difference']
        < 1e-5
        < runtimes['ONNX Runtime, INT8']['mean_abs_difference']
        < 0.1
    )
    assert len(report['speed']['ms_per_image']) == 3
    assert 'agreement' in format_report(report) and 'small_int8.onnx' in format_report(report)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kind='caffe'), "format is 'caffe', expected one of onnx, torch_export, aot_inductor, torchscript"),
        (dict(out='a.onnx'), r'--out is .*a.onnx, expected a file name ending in .pt for --format torchscript'),
        (dict(out='/dev/null/a.pt'), '/dev/null/a.pt could not be written: Not a directory'),
        (dict(part='head'), "part is 'head', expected one of model, neck, backbone"),
        (dict(rounds=-1), '--rounds is -1, expected 0 or more'),
        (dict(preprocess='within'), "preprocess is 'within', expected one of beside, inside"),
        (dict(compared='nowhere'), '--compare nowhere is not a folder'),
        (dict(openvino=True), '--openvino runs ONNX files, not those of --format torchscript: use --format onnx'),
        (dict(size=(0, 3)), '--size is 0 3, expected a height and a width'),
        (dict(size=(1, 2, 3)), '--size is 1 2 3, expected a height and a width'),
        (dict(checkpoint='nowhere.pth'), 'nowhere.pth does not exist'),
        (dict(config='nowhere.py'), 'config nowhere.py does not exist'),
        (dict(int8='.'), r'--int8 is not supported with --format torchscript'),
        (dict(labelled='.'), '--labelled measures an 8-bit file: also give --int8 FOLDER'),
        (dict(options={'model.neck': None}, part='neck'), 'ImageClassifier has no neck: use --part backbone or'),
        (
            dict(options={'model.head.type': 'MultiLabelLinearClsHead'}),
            'has a head of MultiLabelLinearClsHead, expected',
        ),
        (
            dict(
                options={'model.backbone': dict(_delete_=True, type='MobileNetV2'), 'model.head.in_channels': 1280},
                optimize=True,
            ),
            '--optimize: Scores contains nothing to optimize',
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = saved('classification')
    given = dict(dict(config=config, checkpoint=checkpoint, out='a.pt', kind='torchscript', rounds=0), **arguments)
    if 'options' in arguments:
        monkeypatch.setattr('fcvit_mm.apis.load._load_weights', lambda model, checkpoint, cfg: None)
    with pytest.raises(UserError, match=message):
        export_model(**given)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(int8='nowhere'), '--int8 nowhere is not a folder'),
        (dict(int8='empty'), 'no images .* below empty'),
        (dict(calibration=5), '--calibration-images are those of --int8 FOLDER'),
        (dict(int8='{images}', calibration=0), '--calibration-images is 0, expected at least 1'),
        (dict(int8='{images}', labelled='nowhere'), '--labelled nowhere is not a folder'),
        (dict(int8='{images}', labelled='{images}/a'), 'in the folders of .*/a, expected one folder per class'),
        (dict(int8='{images}', labelled='{images}', part='backbone'), 'a classifier, but the graph returns features'),
        (
            dict(int8='{images}', options={'test_dataloader': None}),
            '--int8 and --compare read images by the test_dataloader of a .*, which .*small.py lacks: add it, or',
        ),
        (
            dict(int8='{images}', options={'test_dataloader.dataset.pipeline': [TTA]}),
            'the test pipeline ends with TestTimeAug, which does not return one image: give the test pipeline without',
        ),
        (dict(int8='corrupt'), '(.*corrupt/[0-2].png cannot be decoded.*){3}; and 2 more of --int8 corrupt$'),
    ],
)
def test_invalid_image_folders_are_refused(arguments, message, saved, samples, tmp_path, monkeypatch, needs):
    needs('onnx')
    monkeypatch.chdir(tmp_path)
    for name in ('empty', 'corrupt'):
        (tmp_path / name).mkdir()
    for index in range(5):
        (tmp_path / 'corrupt' / f'{index}.png').write_bytes(b'\x89PNG')
    arguments = {
        key: value.format(images=samples) if isinstance(value, str) else value for key, value in arguments.items()
    }
    with pytest.raises(UserError, match=message):
        export_model(*saved('classification'), 'a.onnx', 'onnx', rounds=0, **arguments)
    assert not (tmp_path / 'a.onnx').exists()


def test_checkpoint_is_not_overwritten(saved, tmp_path):
    config, checkpoint = saved('classification')
    own = tmp_path / 'own.pt'
    shutil.copy(checkpoint, own)
    (tmp_path / 'link.pt').symlink_to(own)
    for out in (own, tmp_path / 'link.pt'):
        with pytest.raises(UserError, match=r'--out is .*, which is read and would be replaced: give another name'):
            export_model(config, str(own), str(out), 'torchscript', rounds=0)
    assert torch.load(own).keys() == torch.load(checkpoint).keys()


def test_folder_with_the_name_of_the_8_bit_file(saved, samples, tmp_path, needs):
    needs('onnx')
    (tmp_path / 'a_int8.onnx').mkdir()
    with pytest.raises(UserError, match='a_int8.onnx could not be written: Is a directory'):
        export_model(*saved('classification'), str(tmp_path / 'a.onnx'), 'onnx', int8=str(samples))
    assert os.listdir(tmp_path) == ['a_int8.onnx']


def test_weights_beyond_the_limit_of_onnx(saved, tmp_path, monkeypatch, needs):
    needs('onnx')
    monkeypatch.setattr(formats, 'LARGEST_ONNX', 1000)
    with pytest.raises(UserError, match='the weights take 0.0 GiB, but an ONNX file holds at most 2 GiB: use --f'):
        export_model(*saved('classification'), str(tmp_path / 'a.onnx'), 'onnx')
    assert not os.listdir(tmp_path)


def test_size_at_which_the_model_fails(saved, tmp_path, monkeypatch):
    """The error occurs before the export."""
    config, checkpoint = saved('segmentation')

    def forward(self, maps):
        raise ValueError('odd sides')

    monkeypatch.setattr('mmseg.models.decode_heads.UPerHead.forward', forward)
    monkeypatch.setattr('fcvit_mm.export.exporter.write_export', None)
    with pytest.raises(UserError, match=r'an image of 30x41 \(height, width; from --size\) failed: ValueError: odd'):
        export_model(config, checkpoint, str(tmp_path / 'a.pt'), 'torchscript', size=(30, 41))


@pytest.mark.parametrize(
    ('part', 'divisor', 'message'),
    [
        ('neck', 32, None),
        ('model', 32, None),
        (
            'neck',
            1,
            r'running the model on 1 images of 97x131 \(height, width\) failed: RuntimeError: Sizes of tensors',
        ),
        (
            'model',
            1,
            r'does not. If it takes multiples of 32, as RTMDet does, .* pad_size_divisor=32, by --cfg-options',
        ),
    ],
)
def test_model_that_requires_multiples_of_a_size(part, divisor, message, saved, tmp_path, monkeypatch):
    """A PAFPN concatenates maps upsampled by 2. It is compared on padded images if the data preprocessor pads."""
    config, checkpoint = saved('detection')

    def forward(self, maps):
        large, small = (lateral(x) for lateral, x in zip(self.lateral_convs, maps))
        joined = torch.cat((large, nn.Upsample(scale_factor=2)(small)), 1)[:, : large.shape[1]]
        return (joined, small, small[:, :, ::2, ::2])

    monkeypatch.setattr('mmdet.models.necks.FPN.forward', forward)
    arguments = (config, checkpoint, str(tmp_path / 'a.pt'), 'torchscript', part)
    options = {'model.data_preprocessor.pad_size_divisor': divisor}
    if message is None:
        differences = export_model(*arguments, rounds=0, options=options)['differences']
        wanted = (128, 160) if part == 'neck' else (97, 131)
        assert differences[0]['shape'][1:] == wanted
    else:
        with pytest.raises(UserError, match=message):
            export_model(*arguments, options=options)
        assert not os.listdir(tmp_path)


def test_test_pipeline_of_a_wrapped_data_set(saved):
    from fcvit_mm.engine.config import load_config

    config, checkpoint = saved('classification')
    inner = load_config(config).test_dataloader.dataset
    cfg = load_config(config, {'test_dataloader.dataset': dict(_delete_=True, type='RepeatDataset', dataset=inner)})
    network = load_network(config, checkpoint)
    found = describe(cfg, network, 'model', False, (40, 40), take_part(network.model, 'classification'))
    assert [step['type'] for step in json.loads(found['test_pipeline'])][2] == 'CenterCrop'


def test_complete_detector_with_pixels_as_input(saved, samples, tmp_path):
    """Images of --compare are prepared by the test pipeline."""
    out = str(tmp_path / 'a.pt')
    report = export_model(
        *saved('detection'), out, 'torchscript', rounds=1, preprocess='inside', compared=str(samples), size=(70, 90)
    )
    found = report['differences']
    assert [each['real'] for each in found] == [False] * 4 + [True] * 6
    # 50x60 pixels are resized to 63x75; the input of the graph is not padded.
    assert {tuple(each['shape']) for each in found[4:]} == {(1, 63, 75)}
    assert all(each['matched'] == each['detections'] > 3 for each in found)
    text = format_report(json.loads(json.dumps(report)))
    number = sum(each['detections'] for each in found[4:])
    assert f'on 6 images of {samples}: {number} of {number} detections are the same, largest' in text
    found[4]['found'] += 1
    assert f'{number} of {number} detections are the same, 1 more in the file, largest' in format_report(report)
    assert 'uint8 (1, height, width, 3), pixels as OpenCV loads them (BGR)' in text
    metadata = {'metadata.json': ''}
    torch.jit.load(out, _extra_files=metadata)
    metadata = json.loads(metadata['metadata.json'])
    assert (
        metadata['preprocess'] == 'inside' and metadata['pad_size_divisor'] == '1' and 'left, top' in metadata['boxes']
    )


def test_8_bit_complete_detector(saved, samples, tmp_path, needs):
    needs('onnx')
    if not os.environ.get('LONG_EXPORTS'):
        pytest.skip('takes a minute: set LONG_EXPORTS=1')
    out = str(tmp_path / 'a.onnx')
    report = export_model(*saved('detection'), out, 'onnx', rounds=0, int8=str(samples))
    found = report['int8']['runtimes']
    assert found['PyTorch']['same_detections'] == found['ONNX Runtime']['same_detections'] == 1
    assert 0.5 < found['ONNX Runtime, INT8']['same_detections'] <= 1
    assert 'same detections' in format_report(report)


def test_images_are_read_as_contiguous_tensors(saved, samples):
    from fcvit_mm.engine.config import load_config

    config, checkpoint = saved('detection')
    network = load_network(config, checkpoint)
    for pads in (True, False):
        part = Part()
        part.pads = pads
        image = input_reader(load_config(config), network, part)(str(samples / 'a' / '0.png'))
        # The config resizes to 63x75; the image is padded to 64x96 unless the graph pads.
        assert tuple(image.shape[2:]) == ((63, 75) if pads else (64, 96)) and image.is_contiguous()


def test_comparison_without_detections_is_reported_as_weak(saved, tmp_path):
    options = {'model.test_cfg.score_thr': 1.0}
    report = export_model(*saved('detection'), str(tmp_path / 'a.pt'), 'torchscript', rounds=0, options=options)
    assert '0 of 0 detections are the same, a weak test (' in format_report(report)


def test_checkpoint_of_another_model_is_refused(saved, tmp_path):
    config, _ = saved('classification')
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='other.pth does not fit the config'):
        export_model(config, str(tmp_path / 'other.pth'), str(tmp_path / 'a.pt'), 'torchscript')


def test_default_size_of_the_speed_measurement(saved):
    from fcvit_mm.engine.config import load_config

    classifier, segmentor = (load_config(saved(task)[0]) for task in ('classification', 'segmentation'))
    assert speed_size(classifier, ()) == (40, 40) and speed_size(classifier, (7,)) == (7, 7)
    classifier.test_dataloader.dataset.pipeline[2].crop_size = (48, 40)  # width, height
    assert speed_size(classifier, ()) == (40, 48)
    assert speed_size(segmentor, ()) == (512, 512) and speed_size(segmentor, (7, 9)) == (7, 9)
