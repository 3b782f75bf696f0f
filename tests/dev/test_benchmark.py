"""dev/benchmark: what the commands write, how times are judged, what is refused."""

import importlib
import json
import subprocess

import numpy as np
import pytest
import torch
from harness import ROOT, run_tool

import fcvit_mm
from fcvit_mm.apis.count import count_multiply_adds, count_traffic
from fcvit_mm.errors import UserError
from fcvit_mm.ops import use_ops

pytest.importorskip('timm')
pytest.importorskip('matplotlib')
FILES = ['plot.png', 'results.json', 'table.md']
SMALL = ['--size', '32', '--batch', '2', '--rounds', '2', '--warmup', '1', '--threads', '1']


@pytest.fixture
def load(monkeypatch):
    """A module of dev/benchmark, imported as its commands do."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'benchmark'))
    return importlib.import_module


@pytest.fixture
def speed(load):
    threads = torch.get_num_threads()
    yield load('speed')
    torch.set_num_threads(threads)


def results(folder):
    assert sorted(path.name for path in folder.iterdir() if path.name != 'profile.txt') == FILES
    assert (folder / 'plot.png').read_bytes().startswith(b'\x89PNG')
    return json.loads((folder / 'results.json').read_text())


def test_command_times_ours_beside_the_plain_definition(tmp_path):
    names = ['fcvit_tiny_plain', 'fcvit_tiny_as_built']
    done = run_tool('benchmark/speed.py', '--networks', *names, *SMALL, '--out', tmp_path / 'out')
    found = results(tmp_path / 'out')
    assert (tmp_path / 'out' / 'table.md').read_text() in done.stdout
    plain, ours = found['rows']
    assert (plain['kind'], ours['kind']) == ('plain', 'ours')
    assert [plain['label'], ours['label']] == names
    assert (plain['layout'], ours['layout']) == ('NCHW', 'channels_last')
    assert plain['params'] == ours['params'] == 4_784_752
    assert plain['multiply_adds'] == ours['multiply_adds'] > 1e7
    assert all(len(row['times']) == 2 and row['peak_growth'] > 2**18 for row in found['rows'])
    assert all(0 < row['matrix_share'] < 1 for row in found['rows'])
    assert found['ceilings']['bandwidth'] > 1e8 and found['machine']['threads'] == 1
    assert 'speed.py' in found['command'] and found['versions']['torch'] == torch.__version__
    assert plain['times_faster_than']['fcvit_tiny_plain']['median_of_ratios'] == 1


def test_peers_dtypes_of_their_own_and_the_profile(speed, tmp_path, capsys):
    speed.main(
        [
            '--networks',
            'resnet50',
            'resnet50@bfloat16',
            '--baseline',
            'resnet50@bfloat16',
            *SMALL,
            '--no-memory',
            '--no-ceilings',
            '--profile',
            '--out',
            str(tmp_path),
        ]
    )
    peer, half = results(tmp_path)['rows']
    assert set(peer['layouts_tried']) == {'NCHW', 'channels_last'}
    assert peer['layout'] == min(peer['layouts_tried'], key=peer['layouts_tried'].get)
    assert (peer['dtype'], half['dtype']) == ('float32', 'bfloat16')
    assert 2 * half['traffic'] == peer['traffic']
    assert peer['kind'] == 'peer' and list(peer['times_faster_than']) == ['resnet50@bfloat16']
    assert 'peak_growth' not in peer and 'peak' not in capsys.readouterr().out
    assert 'aten::' in (tmp_path / 'profile.txt').read_text()


def test_training_steps_on_all_stages(speed, tmp_path):
    speed.main(
        [
            '--networks',
            'fcvit_tiny',
            *SMALL,
            '--mode',
            'train',
            '--features',
            '--warmup',
            '0',
            '--rounds',
            '1',
            '--no-memory',
            '--no-ceilings',
            '--out',
            str(tmp_path),
        ]
    )
    found = results(tmp_path)
    assert found['title'] == 'Training step, batch 2, 32x32, all stages'
    assert 'traffic' not in found['rows'][0]


@pytest.mark.parametrize('features', [False, True])
def test_ways_are_the_same_network(load, features):
    networks = load('networks')
    task = networks.Task('inference', 'cpu', 2, (32, 48), features, 1)
    images = torch.rand(2, 3, 32, 48)
    outputs = []
    for way in ('plain', 'as_built'):
        with torch.no_grad(), use_ops(networks.WAYS[way].ops):
            outputs.append(networks.build('fcvit_tiny', networks.WAYS[way], task).eval()(images))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    if features:
        assert [x.shape[1] for x in outputs[0]] == [32, 64, 160, 320]
    else:
        assert outputs[0].shape == (2, 1000)


def test_plain_way_runs_in_the_layout_it_is_given(load):
    """FCViT's own forward would change it on a CPU."""
    networks = load('networks')
    task = networks.Task('inference', 'cpu', 1, (32, 32), True, 1)
    seen = []
    model = networks.build('fcvit_tiny', networks.WAYS['plain'], task).eval()
    model.backbone.stages[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    model(torch.rand(1, 3, 32, 32))
    model.to(memory_format=torch.channels_last)
    model(torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert seen == [True, False]


@pytest.mark.parametrize('name', ['convnext_tiny', 'swin_tiny_patch4_window7_224', 'poolformer_s24', 'resnet50'])
def test_peers_give_maps_of_any_size(load, name):
    networks = load('networks')
    task = networks.Task('inference', 'meta', 1, (64, 96), True, 1)
    model, images = networks.counted(name, task, 'meta', 1)
    maps = model(images)
    channels_last = name.startswith('swin')
    assert [x.shape[1:3] if channels_last else x.shape[2:] for x in maps[-4:]] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_calls_are_timed_in_turn(load):
    measure = load('measure')
    order = []
    times = measure.interleave(
        {name: lambda name=name: order.append(name) for name in 'abc'},
        rounds=2,
        warmup=1,
        device=torch.device('cpu'),
        repeat=2,
    )
    assert ''.join(order) == 'aabbcc' * 3
    assert {name: len(values) for name, values in times.items()} == dict(a=2, b=2, c=2)


def test_ratios_are_taken_within_rounds(load):
    measure = load('measure')
    # The machine was three times slower in the second round, for both.
    found = measure.ratio([1.0, 3.0, 1.0], baseline=[2.0, 6.0, 4.0])
    assert found.rounds == (2, 2, 3) and found.medians == 4
    with pytest.raises(ValueError, match='2 times and 1 of the baseline'):
        measure.ratio([1.0, 2.0], [1.0])


def test_rows_are_summarized_per_image_and_against_the_ceilings(load):
    rows = [
        dict(label='plain', times=[0.4, 0.4], multiply_adds=1e9, matrix_ceiling=4e10),
        dict(label='ours', times=[0.1, 0.3]),
    ]
    load('report').summarize(rows, batch=8, baselines=['plain'])
    assert rows[0]['ms_per_image'] == dict(median=50, low=50, high=50)
    assert rows[0]['images_per_second'] == pytest.approx(20)
    assert rows[0]['matrix_share'] == pytest.approx(0.5)
    assert rows[1]['ms_per_image']['high'] == pytest.approx(31.25)
    faster = rows[1]['times_faster_than']['plain']
    assert faster['ratio_of_medians'] == pytest.approx(2)
    assert faster['median_of_ratios'] == pytest.approx((4 + 4 / 3) / 2)


def allocate(measure_path, megabytes):
    import sys

    sys.path.insert(0, measure_path)
    from measure import peak_growth

    def call():
        first = torch.ones(megabytes, 2**18)
        first = None  # noqa: F841  freed before the second
        torch.ones(megabytes, 2**18)

    call()
    return peak_growth(call, torch.device('cpu'))


def test_peak_memory_is_what_was_alive_at_once(load):
    measure = load('measure')
    found = measure.in_child(allocate, str(ROOT / 'tools' / 'benchmark'), 50)
    assert found / measure.MIB == pytest.approx(50, abs=2)


def test_peak_memory_of_a_killed_process_is_unknown(load):
    import signal

    assert load('measure').in_child(signal.raise_signal, signal.SIGKILL) is None


def test_traffic_counts_each_operation_once():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Flatten(), torch.nn.ReLU()).to('meta')
    pixels = 10 * 10
    assert count_traffic(model, torch.empty(1, 3, 10, 10, device='meta')) == 4 * (
        3 * pixels
        + 3 * 4
        + 4 * pixels  # the convolution
        + 2 * 4 * pixels
    )  # the ReLU; flattening moves nothing


def test_attention_is_counted():
    class Attention(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_multiply_adds(Attention().eval(), torch.rand(2, 3, 10, 4))[''] == 2 * 3 * 10 * 10 * 4 * 2


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--networks', 'fcvit_b13'], "unknown network 'fcvit_b13', expected one of ours .*fcvit_b12.*convnext_tiny"),
        (['--networks', 'resnet50@int8'], "unknown dtype 'int8', expected one of float32, bfloat16, float16"),
        (['--networks', 'resnet50', 'resnet50'], 'names resnet50 more than once'),
        (['--networks', 'resnet50', '--baseline', 'fcvit_b12'], 'fcvit_b12 is none of --networks .resnet50'),
        (['--networks', 'resnet50', '--size', '32x'], '--size 32x: expected a height and a width in pixels'),
        (['--networks', 'resnet50', '--batch', '0'], '--batch 0: expected at least 1'),
        (['--networks', 'resnet50', '--rounds', '0'], '--rounds 0: expected at least 1'),
        (['--networks', 'resnet50', '--device', 'tpu'], '--device tpu: expected cpu, cuda or cuda:N'),
        (['--networks', 'resnet50', '--device', 'cuda:99'], 'sees [0-9]+ CUDA devices here'),
    ],
)
def test_what_cannot_be_measured_is_refused(speed, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        speed.main([*arguments, '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


def test_without_the_inference_path_the_error_names_another_way(load, monkeypatch):
    networks = load('networks')
    monkeypatch.delattr(fcvit_mm, 'optimize_for_inference', raising=False)
    task = networks.Task('inference', 'cpu', 1, (32, 32), False, 1)
    with pytest.raises(UserError, match='no optimize_for_inference: name fcvit_tiny_as_built'):
        networks.prepare(networks.parse_entry('fcvit_tiny', 'float32'), task, 'channels_last')


def test_a_dtype_that_the_device_lacks_is_named(speed, tmp_path, monkeypatch):
    def prepare(*args):
        raise RuntimeError('"addmm_impl_cpu_" not implemented for \'Half\'')

    monkeypatch.setattr(speed, 'prepare', prepare)
    with pytest.raises(UserError, match='fcvit_tiny: PyTorch .* cannot run it in float16 on cpu .*another dtype'):
        speed.main(['--networks', 'fcvit_tiny', '--dtype', 'float16', *SMALL, '--out', str(tmp_path / 'out')])


def test_every_variant_has_every_way(load):
    known = load('networks').choices()
    for arch in fcvit_mm.FCViT.arch_settings:
        assert known[f'fcvit_{arch}'][1].optimized and known[f'fcvit_{arch}_plain'][1].layout == 'NCHW'
        assert known[f'fcvit_{arch}_plain_channels_last_compiled'] == (
            f'fcvit_{arch}',
            known[f'fcvit_{arch}_plain_channels_last'][1],
            True,
        )
    assert known['convnext_tiny_compiled'][2]


@pytest.mark.parametrize(
    'task, config', [('detection', 'mask_rcnn_fcvit_tiny_coco'), ('segmentation', 'upernet_fcvit_tiny_ade20k')]
)
def test_steps_of_detectors_and_segmentors(load, tmp_path, task, config):
    pytest.importorskip({'detection': 'mmdet', 'segmentation': 'mmseg'}[task])
    dense_step = load('dense_step')
    options = (
        ['model.decode_head.channels=32', 'model.auxiliary_head.channels=16']
        if task == 'segmentation'
        else ['model.train_cfg.rpn_proposal.max_per_img=20', 'model.train_cfg.rcnn.sampler.num=16']
    )
    path = ROOT / 'configs' / task / f'{config}.py'
    threads = torch.get_num_threads()
    try:
        dense_step.main(
            [
                str(path),
                '--ways',
                'plain',
                'ours',
                '--size',
                '64x96',
                '--batch',
                '2',
                '--objects',
                '2',
                '--rounds',
                '1',
                '--warmup',
                '0',
                '--threads',
                '1',
                '--no-memory',
                '--out',
                str(tmp_path),
                '--cfg-options',
                *options,
            ]
        )
    finally:
        torch.set_num_threads(threads)
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()
    found = results(tmp_path)
    assert [row['label'] for row in found['rows']] == ['plain', 'ours']
    assert np.isfinite(found['rows'][1]['times_faster_than']['plain']['median_of_ratios'])


def test_a_step_of_a_classifier_is_another_commands(load, tmp_path):
    pytest.importorskip('mmpretrain')
    with pytest.raises(UserError, match='expected a detector or segmentor; classifiers are timed with speed.py'):
        load('dense_step').main(
            [str(ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py'), '--out', str(tmp_path)]
        )


@pytest.mark.parametrize('script', ['cpu.sh', 'gpu.sh'])
def test_recipes_name_what_there_is(load, tmp_path, script):
    """A stand-in for Python that prints its arguments shows the commands; they must parse."""
    stand_in = tmp_path / 'python'
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / 'tools' / 'benchmark' / script), str(tmp_path / 'out')],
        text=True,
        check=True,
        capture_output=True,
        env={'PATH': '/usr/bin:/bin', 'PYTHON': str(stand_in)},
    )
    networks = load('networks')
    for line in done.stdout.splitlines():
        path, *arguments = line.split()
        args = load('speed' if path.endswith('speed.py') else 'dense_step').parse_args(arguments)
        if path.endswith('speed.py'):
            for label in args.networks:
                networks.parse_entry(label, args.dtype)
            assert set(args.baseline or []) <= set(args.networks)
        else:
            assert (ROOT / args.config).is_file()
