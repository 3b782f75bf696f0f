"""Exported files run in their runtimes."""

import importlib

import pytest
import torch

from fcvit_mm.errors import UserError
from fcvit_mm.export.runtimes import check_openvino, load_exported


def test_compiled_file_gets_contiguous_images(monkeypatch):
    """It would read other layouts with the strides of the recorded example, without an error."""
    monkeypatch.setattr('torch._inductor.aoti_load_package', lambda path: lambda images: images.stride(), raising=False)
    run = load_exported('a.pt2', 'aot_inductor')
    for given in (torch.ones(2, 3, 8, 9)[:, :, :4, :5], torch.ones(2, 4, 5, 3).permute(0, 3, 1, 2)):
        assert run(given) == (60, 20, 5, 1)


def test_openvino_runs_only_onnx_files(monkeypatch):
    with pytest.raises(UserError, match='--openvino runs ONNX files, not those of --format torchscript: use'):
        check_openvino('torchscript')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='--openvino needs openvino, which is not installed: pip install'):
        check_openvino('onnx')
