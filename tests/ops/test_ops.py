"""Every fast form of every operation against its plain definition, and what a user meets around them."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from fcvit_mm import ops
from fcvit_mm.models.layers import Conv2d
from fcvit_mm.ops import conditions
from fcvit_mm.ops.dispatch import operation, use_ops

# The package exports the operation under the module's name.
channel_mixer_module = importlib.import_module('fcvit_mm.ops.channel_mixer')

SIZES = {
    'square': (2, 8, 8),
    'odd': (3, 7, 5),
    'one_image': (1, 6, 9),
    'smaller_than_the_kernel': (2, 2, 3),
    'one_position': (2, 1, 1),
    'empty': (0, 4, 4),
}
CHANNELS = 16


def random(*shape, scale=1.0):
    return torch.randn(*shape, dtype=torch.double) * scale


def arguments(name: str, batch: int, height: int, width: int) -> list:
    """Arguments in float64, the map first."""
    x = random(batch, CHANNELS, height, width)
    if name == 'gelu_':
        return [x * 3]
    if name == 'conv2d':
        return [x, random(24, CHANNELS, 1, 1, scale=0.25), random(24)]
    if name == 'depthwise_conv2d':
        return [x, random(CHANNELS, 1, 11, 11, scale=0.1), random(CHANNELS)]
    if name == 'dwconv_gelu':
        return [x, random(CHANNELS, 1, 3, 3, scale=0.3), random(CHANNELS)]
    if name == 'channel_mixer':
        return [
            x,
            random(64, CHANNELS, 1, 1, scale=0.25),
            random(64),
            random(64, 1, 3, 3, scale=0.3),
            random(64),
            random(CHANNELS, 64, 1, 1, scale=0.1),
            random(CHANNELS),
        ]
    return [x + 0.5, None, random(batch, CHANNELS), 4, random(4), random(4), 1e-5]


OPERATIONS = {
    name: getattr(ops, name)
    for name in ('gelu_', 'conv2d', 'depthwise_conv2d', 'dwconv_gelu', 'channel_mixer', 'add_global_context')
}
#: Fast forms on CPU, and whether they are for maps in channels_last only. Compiled ones: test_native.py and
#: test_triton_kernels.py.
FORMS = [
    ('gelu_', 'nhwc', True),
    ('conv2d', 'float32', False),
    ('depthwise_conv2d', 'float32', False),
    ('dwconv_gelu', 'float32', False),
    ('dwconv_gelu', 'cpu', False),
    ('channel_mixer', 'float32', False),
    ('channel_mixer', 'sliced', False),
    ('channel_mixer', 'composed', False),
    ('add_global_context', 'matmul', True),
]


def form_of(name: str, form: str):
    return next(f for f in OPERATIONS[name].forms if f.name == form)


@pytest.fixture
def small_machine(monkeypatch):
    """Slices for small maps, too, and a CPU without half precision whatever this one is."""
    monkeypatch.setattr(channel_mixer_module, 'SLICE_BYTES', 2048)
    monkeypatch.setattr(channel_mixer_module, 'WIDE', 16)
    monkeypatch.setattr(channel_mixer_module, 'NARROW', 8)
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: dtype not in conditions.HALF)


def cast(args: list, dtype: torch.dtype, layout: torch.memory_format) -> list:
    args = [arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
    args[0] = args[0].contiguous(memory_format=layout)
    return args


def run(function, args: list, grad: bool):
    """Output and, if asked, the gradients of all tensors."""
    args = [arg.clone().requires_grad_(grad) if isinstance(arg, torch.Tensor) else arg for arg in args]
    full = list(args)
    if len(args) > 1 and args[1] is None:
        full[1] = ops.position_means(args[0])
    with torch.set_grad_enabled(grad):
        output = function(*full)
    if not grad:
        return [output]
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output).to(output.dtype))
    return [output.detach()] + [arg.grad for arg in args if isinstance(arg, torch.Tensor)]


def test_forms_are_all_tested():
    present = {
        (name, form.name)
        for name, op in OPERATIONS.items()
        for form in op.forms
        if form.name not in ('native', 'triton')
    }
    assert present == {(name, form) for name, form, _ in FORMS}


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name, form, nhwc_only', FORMS, ids=lambda value: value if isinstance(value, str) else '')
def test_a_form_agrees_with_the_definition(small_machine, name, form, nhwc_only, size):
    torch.manual_seed(0)
    form = form_of(name, form)
    exact = arguments(name, *SIZES[size])
    tried = 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for grad in (False, True):
                args = cast(exact, dtype, layout)
                probe = [
                    arg.requires_grad_(grad) if isinstance(arg, torch.Tensor) else arg
                    for arg in cast(exact, dtype, layout)
                ]
                with torch.set_grad_enabled(grad):
                    applies = form.when(*probe)
                if not applies or dtype not in conditions.HALF and form.name == 'float32':
                    continue
                if dtype == torch.float16 and form.name in ('cpu', 'nhwc', 'composed') and torch.__version__ < '2.2':
                    continue  # float16 is not implemented on CPU there
                tried += 1
                # In half precision the definition rounds between its steps: compare with exact arithmetic on the
                # same rounded arguments.
                rounded = [arg.double() if isinstance(arg, torch.Tensor) else arg for arg in args]
                expected = run(OPERATIONS[name].plain, rounded, grad)
                got = run(form.function, args, grad)
                tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
                for want, have in zip(expected, got):
                    assert have.dtype == dtype and have.shape == want.shape
                    scale = want.abs().max().clamp(min=1).item() if want.numel() else 1.0
                    torch.testing.assert_close(have.double(), want, rtol=0, atol=tolerance * scale)
    if size not in ('empty', 'one_position', 'smaller_than_the_kernel') or form.name not in ('sliced', 'matmul'):
        assert tried


def test_slices_cover_channels_and_images_that_they_do_not_divide(small_machine):
    torch.manual_seed(0)
    x = torch.randn(5, 6, 8, 8)
    hidden = 50
    args = [
        torch.randn(hidden, 6, 1, 1),
        torch.randn(hidden),
        torch.randn(hidden, 1, 3, 3),
        torch.randn(hidden),
        torch.randn(6, hidden, 1, 1),
        torch.randn(6),
    ]
    slices = channel_mixer_module.plan_slices(x, hidden)
    assert hidden % slices.channels and slices.images < 5
    torch.testing.assert_close(
        form_of('channel_mixer', 'sliced').function(x, *args), ops.channel_mixer.plain(x, *args), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    'shape, hidden',
    [
        ((8, 64, 56, 56), 512),
        ((8, 128, 28, 28), 1024),
        ((7, 64, 56, 56), 512),
        ((1, 128, 100, 152), 1024),
        ((64, 320, 14, 14), 1280),
    ],
)
def test_slices_stay_in_their_bound(shape, hidden):
    slices = channel_mixer_module.plan_slices(torch.empty(shape, device='meta'), hidden)
    size = slices.images * slices.channels * shape[2] * shape[3] * 4
    assert channel_mixer_module.SLICE_BYTES / 4 < size <= channel_mixer_module.SLICE_BYTES
    assert slices.channels >= min(channel_mixer_module.WIDE, hidden)


def test_a_map_that_fits_is_one_slice():
    for shape in ((8, 320, 14, 14), (0, 320, 14, 14), (1, 64, 7, 7)):
        assert channel_mixer_module.plan_slices(torch.empty(shape, device='meta'), 1280) == (shape[0], 1280)


def test_recomputed_mixer_has_the_gradients_of_the_plain_one(small_machine):
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        args = cast(arguments('channel_mixer', 2, 8, 7), torch.float32, layout)
        expected = run(ops.channel_mixer.plain, args, grad=True)
        for want, have in zip(expected, run(ops.recomputed_channel_mixer, args, grad=True)):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


def test_recomputed_mixer_keeps_less_for_the_backward_pass(small_machine):
    def kept(function) -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            held.append(tensor)
            return tensor

        held = []

        args = cast(arguments('channel_mixer', 2, 16, 16), torch.float32, torch.channels_last)
        args = [arg.requires_grad_() for arg in args]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = function(*args)
        assert output.requires_grad
        return sum(sizes.values())

    assert kept(ops.recomputed_channel_mixer) < kept(ops.channel_mixer) / 2


def test_gelu_leaves_alone_what_autograd_needs():
    x = torch.randn(1, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    ops.gelu_(x).sum().backward()
    assert torch.equal(x.detach(), before)
    with torch.no_grad():
        assert ops.gelu_(x).data_ptr() != 0


def test_a_hook_sees_what_the_convolution_gave():
    """A feature extractor's tensor must not be overwritten by the GELU behind it."""
    from fcvit_mm.models.layers import gelu_of

    conv = Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    seen = []
    with torch.no_grad():
        expected = conv(x).clone()
        handle = conv.register_forward_hook(lambda module, args, output: seen.append(output))
        with_hook = gelu_of(conv, x)
        handle.remove()
        torch.testing.assert_close(seen[0], expected)
        torch.testing.assert_close(gelu_of(conv, x), with_hook)


def test_hooks_in_a_channel_mixer_are_called():
    from fcvit_mm.models.fcvit import ChannelMixer

    mixer = ChannelMixer(8, 16).eval()
    x = torch.randn(1, 8, 4, 4)
    without = mixer(x)
    calls = []
    for name in ('fc1', 'dwconv', 'fc2'):
        getattr(mixer, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.testing.assert_close(mixer(x), without)
    assert calls == ['fc1', 'dwconv', 'fc2']


@pytest.mark.skipif(torch.__version__ < '2.2', reason='needs bfloat16 gradients on CPU')
def test_autocast_on_cpu():
    """Under autocast the convolutions take bfloat16, the similarity stays in float32."""
    args = cast(arguments('add_global_context', 2, 6, 6), torch.float32, torch.channels_last)
    args[1] = ops.position_means(args[0])
    expected = ops.add_global_context(*args)
    with torch.autocast('cpu', torch.bfloat16):
        got = ops.add_global_context(*args)
        convolved = ops.depthwise_conv2d(args[0], torch.randn(CHANNELS, 1, 3, 3))
    assert got.dtype == torch.float32 and convolved.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected)


# The switch.


@operation()
def _twice(x):
    return 2 * x


@_twice.fast('thrice', when=lambda x: x.ndim == 1)
def _thrice(x):
    return 3 * x


@_twice.fast('four_times', when=lambda x: x.ndim == 2, traceable=True)
def _four_times(x):
    return 4 * x


def test_the_first_form_that_applies_is_taken():
    one, two, three = torch.ones(1), torch.ones(1, 1), torch.ones(1, 1, 1)
    assert [_twice(x).item() for x in (one, two, three)] == [3, 4, 2]
    with use_ops('plain'):
        assert [_twice(x).item() for x in (one, two, three)] == [2, 2, 2]
        with use_ops('auto'):
            assert _twice(one).item() == 3
    assert _twice(one).item() == 3
    assert repr(_twice) == '_twice (plain, thrice, four_times)'


def test_the_mode_comes_back_after_an_error():
    with pytest.raises(RuntimeError), use_ops('plain'):
        raise RuntimeError
    assert _twice(torch.ones(1)).item() == 3


def test_tracing_records_standard_operations_only():
    for x, factor in ((torch.ones(1), 2), (torch.ones(1, 1), 4)):
        traced = torch.jit.trace(lambda x: _twice(x), x, check_trace=False)
        assert traced(x).sum().item() == factor


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"mode is 'fast', expected one of auto, plain"), use_ops('fast'):
        pass


@pytest.mark.parametrize('value, status', [('plain', 0), ('auto', 0), ('quick', 1)])
def test_environment_variable(value, status):
    code = 'from fcvit_mm.ops.dispatch import _mode; print(_mode)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, FCVIT_MM_OPS=value),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == status
    if status:
        assert "the environment variable FCVIT_MM_OPS is 'quick', expected one of auto, plain" in done.stderr
    else:
        assert done.stdout.strip() == value


# Arguments that do not fit.

X = torch.ones(2, 16, 4, 4)


@pytest.mark.parametrize(
    'call, error, message',
    [
        (lambda: ops.gelu_([1.0]), TypeError, 'gelu_: x is list, expected a floating-point tensor'),
        (lambda: ops.gelu_(X.int()), TypeError, 'gelu_: x is torch.int32'),
        (lambda: ops.gelu_(X[0]), ValueError, r'gelu_: x has the shape \(16, 4, 4\), expected four dimensions'),
        (
            lambda: ops.conv2d(X, torch.ones(8, 12, 1, 1)),
            ValueError,
            r'conv2d: weight has the shape \(8, 12, 1, 1\), but x of shape \(2, 16, 4, 4\) takes \(8, 16, 1, 1\)',
        ),
        (
            lambda: ops.conv2d(X, torch.ones(8, 16, 1, 1), torch.ones(9)),
            ValueError,
            r'bias has the shape \(9,\).*\(8,\)',
        ),
        (
            lambda: ops.depthwise_conv2d(X, torch.ones(8, 1, 3, 3)),
            ValueError,
            r'depthwise_conv2d: weight has the shape \(8, 1, 3, 3\), but x of shape .* takes \(16, 1, 3, 3\)',
        ),
        (lambda: ops.depthwise_conv2d(X, torch.ones(16, 1, 4, 4)), ValueError, 'kernel of 4x4, expected an odd size'),
        (
            lambda: ops.dwconv_gelu(X, torch.ones(16, 1, 3, 3).double()),
            TypeError,
            r'dwconv_gelu: weight is torch.float64, but x is torch.float32: .*\.to\(dtype\)',
        ),
        (
            lambda: ops.dwconv_gelu(X, torch.ones(16, 1, 3, 3, device='meta')),
            ValueError,
            'weight is on meta, but x is on cpu',
        ),
        (
            lambda: ops.channel_mixer(
                X,
                torch.ones(64, 16, 1, 1),
                torch.ones(64),
                torch.ones(64, 1, 3, 3),
                torch.ones(64),
                torch.ones(16, 32, 1, 1),
                torch.ones(16),
            ),
            ValueError,
            r'channel_mixer: fc2_weight has the shape \(16, 32, 1, 1\), but x .* takes \(16, 64, 1, 1\)',
        ),
        (
            lambda: ops.add_global_context(
                X, torch.ones(2, 8), torch.ones(2, 16), 4, torch.ones(4), torch.ones(4), 1e-5
            ),
            ValueError,
            r'means has the shape \(2, 8\), but x of shape \(2, 16, 4, 4\) takes \(2, 16\)',
        ),
        (
            lambda: ops.add_global_context(
                X, torch.ones(2, 16), torch.ones(2, 16), 5, torch.ones(5), torch.ones(5), 1e-5
            ),
            ValueError,
            'num_heads=5 does not divide the 16 channels',
        ),
    ],
)
def test_arguments_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
