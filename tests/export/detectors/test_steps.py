"""Postprocessing steps agree with the operators of ONNX."""

import pytest
import torch

from fcvit_mm.export.detectors.steps import topk
from fcvit_mm.export.formats import OPSET


@pytest.mark.parametrize('limit', [3, 60, 100, 200])
def test_best_of_selects_the_first_of_equal_values_like_topk_of_onnx(limit):
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    values = torch.rand(100, generator=torch.Generator().manual_seed(0))
    values[::2] = 0.5
    values[::7] = 0.9
    found, index = topk(values, limit, stable=False)
    assert index.tolist() == sorted(range(100), key=lambda place: -values[place].item())[:limit]
    assert (found == values[index]).all()
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node('TopK', ['values', 'limit'], ['found', 'index'])],
        'topk',
        [helper.make_tensor_value_info('values', kinds.FLOAT, [100])],
        [helper.make_tensor_value_info('index', kinds.INT64, [None])],
        [helper.make_tensor('limit', kinds.INT64, [1], [min(limit, 100)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.run(None, {'values': values.numpy()})[0].tolist() == index.tolist()
