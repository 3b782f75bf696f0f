"""Calibration and measurement of 8-bit files, and the operators that stay in float32."""

import os

import numpy as np
import pytest
import torch

from fcvit_mm.errors import UserError
from fcvit_mm.export.exporter import export_model
from fcvit_mm.export.quantization import (
    calibration_images,
    check_quantizer,
    labelled_images,
    measure_drift,
    products_of_detections,
    quantize,
    starts_of_streams,
)


def test_accuracy_is_computed_from_class_folders(samples):
    labelled = labelled_images(str(samples), ('c', 'b', 'a'), 3)
    assert [sample.label for sample in labelled] == [2, 2, 1, 1, 0, 0]
    scores = {'always c': torch.tensor([[0.7, 0.2, 0.1]]), 'always a': torch.tensor([[0.2, 0.1, 0.7]])}
    found = measure_drift(
        {name: lambda images, value=value: value for name, value in scores.items()},
        [*labelled, labelled[0]],
        lambda path: path,
        True,
    )
    assert [each['accuracy'] for each in found['runtimes'].values()] == pytest.approx([2 / 7, 3 / 7])
    assert found['runtimes']['always a']['agreement'] == 0
    assert found['runtimes']['always a']['mean_abs_difference'] == pytest.approx((0.5 + 0.1 + 0.6) / 3)


@pytest.mark.parametrize('channels', [1, 2])
def test_no_agreement_is_reported_for_one_channel(channels, samples):
    """For a segmentor with a sigmoid and one channel, all pixels would agree."""
    runs = {'first': lambda path: torch.zeros(1, channels, 2, 2), 'second': lambda path: torch.ones(1, channels, 2, 2)}
    found = measure_drift(runs, calibration_images(str(samples), 2), lambda path: path, True)['runtimes']['second']
    assert found == dict(mean_abs_difference=1, max_abs_difference=1, **(dict(agreement=1) if channels > 1 else {}))


def test_class_folders_that_do_not_match_are_refused(samples, tmp_path):
    with pytest.raises(
        UserError,
        match=r'has 3 folders \(a, b, c\), expected one for each of the 4 classes \(w, x, .*: name them after',
    ):
        labelled_images(str(samples), tuple('wxyz'), 4)
    with pytest.raises(UserError, match='in the folders of .*, expected one folder per class: give the folder'):
        labelled_images(str(samples / 'a'), None, 3)
    # The names in the checkpoint differ, but their number is the same: folders are used in order.
    assert labelled_images(str(samples), tuple('xyz'), 3)[-1].label == 2


def test_old_onnx_runtime_is_refused(needs, monkeypatch):
    needs('onnx')
    check_quantizer()
    monkeypatch.setattr('onnxruntime.__version__', '1.20.1')
    with pytest.raises(UserError, match='--int8 needs onnxruntime 1.21 or newer, found 1.20.1: .*pip install'):
        check_quantizer()


def test_calibration_images_are_spread_evenly(samples):
    found = [os.path.relpath(sample.path, samples) for sample in calibration_images(str(samples), 3)]
    assert found == ['a/0.png', 'b/0.png', 'c/0.png']
    assert len(calibration_images(str(samples), 100)) == 6


def test_products_of_detections_are_found(tmp_path, needs):
    needs('onnx')
    from onnx import TensorProto, helper, numpy_helper, save

    def node(kind, inputs, output):
        return helper.make_node(kind, inputs, [output], name=f'make_{output}')

    nodes = [
        node('MatMul', ['x', 'x'], 'attention'),
        node('NonMaxSuppression', ['boxes', 'scores'], 'kept'),
        node('Cast', ['kept'], 'kernels'),
        node('MatMul', ['kernels', 'weight'], 'mask_head'),
        node('MatMul', ['kernels', 'x'], 'first'),
        node('Relu', ['first'], 'active'),
        node('MatMul', ['kernels', 'active'], 'second'),
        node('MatMul', ['x', 'weight'], 'beside'),
    ]
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), 'weight')
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ('x', 'boxes', 'scores')]
    path = str(tmp_path / 'a.onnx')
    save(helper.make_model(helper.make_graph(nodes, 'small', inputs, [], [weight])), path)
    assert products_of_detections(path) == ['make_first', 'make_second']


@pytest.mark.parametrize(
    'operators, expected',
    [
        # a residual stream with two branches; a constant is added at its start
        (
            ['Conv images s', 'Add s t', 'Conv t u', 'Add t,u v', 'Conv v w', 'Relu w x', 'Add v,x y', 'Conv y out'],
            ['s'],
        ),
        # only one branch
        (['Conv images s', 'Conv s t', 'Add s,t u', 'Conv u out'], []),
        # two streams: the second starts at a downsampling of the first
        (
            ['Conv images a', 'Conv a b', 'Add a,b c', 'Conv c d', 'Add c,d e', 'Conv e f', 'MatMul f,f g', 'Add f,g h']
            + ['Gemm h i', 'Add h,i out'],
            ['a', 'f'],
        ),
        # a feature pyramid, where maps of different levels are added
        (['Conv images a', 'Conv a b', 'Conv a c', 'Add b,c d', 'Conv b e', 'Add d,e out'], []),
        # shapes are no stream
        (['Conv images a', 'Shape a b', 'Add b c', 'Conv a d', 'Conv d e', 'Add e,c f', 'Add f,b out'], []),
    ],
)
def test_residual_streams_start_at_patch_embeddings_and_downsampling(operators, expected, tmp_path, needs):
    needs('onnx')
    from onnx import TensorProto, helper, save

    nodes = []
    for operator in operators:
        kind, inputs, output = operator.split()
        weights = ['weight'] if kind in ('Conv', 'Gemm') or (kind == 'Add' and ',' not in inputs) else []
        nodes.append(helper.make_node(kind, [*inputs.split(','), *weights], [output], name=output))
    images, out, weight = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ('images', 'out', 'weight')
    )
    values = helper.make_tensor('weight', TensorProto.FLOAT, [1], [1.0])
    path = str(tmp_path / 'a.onnx')
    save(helper.make_model(helper.make_graph(nodes, 'small', [images, weight], [out], [values])), path)
    assert starts_of_streams(path) == expected


def test_residual_streams_of_a_backbone(saved, tmp_path, needs):
    """They start at the stem and at the downsampling."""
    needs('onnx')
    import onnx

    out = str(tmp_path / 'a.onnx')
    export_model(*saved('detection'), out, 'onnx', part='backbone', rounds=0)
    inputs = {node.name: list(node.input) for node in onnx.load(out).graph.node}
    found = [next(name for name in inputs[node] if name.endswith('weight')) for node in starts_of_streams(out)]
    assert [name.split('.')[-3:] for name in found] == [['stem', 'proj', 'weight'], ['downsample', 'proj', 'weight']]


@pytest.mark.parametrize('excluded', ['products_of_detections', 'starts_of_streams'])
def test_excluded_products_stay_in_float32(excluded, tmp_path, needs, monkeypatch):
    needs('onnx')
    from onnx import TensorProto, helper, load, numpy_helper, save

    nodes = [helper.make_node('MatMul', ['images', 'images'], ['square'], name='make_square')]
    nodes += [helper.make_node('MatMul', ['square', 'weight'], ['out'], name='make_out')]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), 'weight')
    inputs = [helper.make_tensor_value_info('images', TensorProto.FLOAT, [4, 4])]
    outputs = [helper.make_tensor_value_info('out', TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph(nodes, 'small', inputs, outputs, [weight])
    path, out = str(tmp_path / 'a.onnx'), str(tmp_path / 'a_int8.onnx')
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8), path)
    monkeypatch.setattr(f'fcvit_mm.export.quantization.{excluded}', lambda _: ['make_square'])
    quantize(path, out, [torch.rand(4, 4)])
    written = load(out)
    inputs_of = {node.name: list(node.input) for node in written.graph.node}
    assert inputs_of['make_square'] == ['images', 'images']
    assert all('DequantizeLinear' in name for name in inputs_of['make_out'])
    assert [each.domain for each in written.opset_import] == ['']
