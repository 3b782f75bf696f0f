"""How the kernels are registered, so that compilers record them, and layouts."""

import pytest
import torch
from harness import run_python
from kernel_cases import DEVICE, EPS, HEADS, LAST, convolution_inputs, launches_kernels, random
from torch import library
from torch.utils.flop_counter import FlopCounterMode

from fcvit_mm import ops
from fcvit_mm.ops import channel_means
from fcvit_mm.ops.triton import add_global_context, applies, available, depthwise_conv2d, devices, dwconv_gelu, support

in_interpreter = pytest.mark.skipif(support.INTERPRETED, reason='not about kernels: asked outside the interpreter')


@in_interpreter
def test_importing_the_package_imports_no_triton():
    # With torch 2.1 MMEngine imports Dynamo, by PyTorch's distributed optimizers.
    code = 'import sys, mmengine.runner as _; before = {*sys.modules}; import fcvit_mm.ops.triton; '
    code += 'print(sorted({"triton", "torch._dynamo"} & ({*sys.modules} - before)))'
    done = run_python('-c', code)
    assert done.stdout == '[]\n', done.stdout + done.stderr


@in_interpreter
def test_torch_without_custom_operators_has_no_kernels(monkeypatch):
    monkeypatch.delattr(library, 'infer_schema', raising=False)
    available.cache_clear()
    try:
        assert not available()
        function = support.custom_op('never_registered', None)(abs)
        assert function is abs
    finally:
        available.cache_clear()


@in_interpreter
def test_layouts():
    x = torch.ones(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for given in (x, x[:, :, ::2], last):
        assert support.to_channels_last(given).is_contiguous(memory_format=LAST)
        assert support.empty_like(given).is_contiguous(memory_format=LAST)
        assert support.empty_like(given, torch.bfloat16).dtype == torch.bfloat16
    assert support.restore_layout(last, x).is_contiguous()
    assert support.restore_layout(last, last) is last
    assert [support.next_power_of_2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]


class Module(torch.nn.Module):
    """Every kernel once."""

    def __init__(self):
        super().__init__()
        _, weight, bias = convolution_inputs((1, 4, 2, 3), 3)
        self.weight, self.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
        self.rescale = torch.nn.Parameter(torch.ones(HEADS, device=DEVICE))

    def forward(self, x):
        return self.by(x, add_global_context, depthwise_conv2d, dwconv_gelu)

    def reference(self, x):
        """As ``forward``, by the references, because the kernels are slow in the interpreter."""
        return self.by(x, *(op.reference for op in (ops.add_global_context, ops.depthwise_conv2d, ops.dwconv_gelu)))

    def by(self, x, add_global_context, depthwise_conv2d, dwconv_gelu):
        assert applies(x)
        x = add_global_context(x, channel_means(x), x.mean((2, 3)), HEADS, self.rescale, self.rescale, EPS)
        return dwconv_gelu(depthwise_conv2d(x, self.weight, self.bias), self.weight, self.bias)


@launches_kernels
def test_compile_records_the_operators(monkeypatch):
    module, x = Module(), random(1, 4, 1, 2, layout=LAST)
    small, tried = convolution_inputs((1, 4, 1, 1), 3), []
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    # A kernel is tried while the compiler traces; all of them in the last test.
    monkeypatch.setattr(devices, '_usable', {})
    monkeypatch.setattr(devices, '_smoke', lambda device: tried.append(depthwise_conv2d(*small).sum().backward()))
    out, expected = compiled(x), module.reference(x)
    assert tried == [None]
    torch.testing.assert_close(out, expected)
    parameters = tuple(module.parameters())
    for ours, grad in zip(torch.autograd.grad(out.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)):
        torch.testing.assert_close(ours, grad)


@launches_kernels
def test_export_records_the_operators():
    module, x = Module(), random(2, 4, 1, 2).detach()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=2, max=8)},))
    names = {str(node.target) for node in program.graph.nodes}
    assert {f'fcvit_mm.{name}.default' for name in ('depthwise_conv2d', 'dwconv_gelu', 'add_global_context')} <= names
    x = random(3, 4, 1, 2).detach()
    torch.testing.assert_close(program.module()(x), module.reference(x))


@launches_kernels
def test_unobserved_calls_skip_the_dispatcher():
    """Autograd, modes and subclasses get the operator; any other call launches the kernel directly."""
    x, weight, bias = (value.detach() for value in convolution_inputs((1, 4, 2, 2), 3))
    with FlopCounterMode(display=False) as counted:
        expected = depthwise_conv2d(x, weight, bias)
    assert counted.get_total_flops() == 2 * x.numel() * 9
    with torch.profiler.profile() as recorded:
        torch.testing.assert_close(depthwise_conv2d(x, weight, bias), expected, rtol=0, atol=0)
    assert not any('fcvit_mm::' in event.key for event in recorded.key_averages())
    with torch.profiler.profile() as recorded:
        assert depthwise_conv2d(x, weight.requires_grad_(), bias).requires_grad
    assert any('fcvit_mm::depthwise_conv2d' in event.key for event in recorded.key_averages())


@launches_kernels
def test_second_derivatives_are_refused():
    x, weight, bias = convolution_inputs((1, 4, 2, 2), 3)
    (grad,) = torch.autograd.grad(depthwise_conv2d(x, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'depthwise_conv2d_grad_input only has first derivatives.*use_ops'):
        grad.sum().backward()
