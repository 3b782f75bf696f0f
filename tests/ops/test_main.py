"""``python -m fcvit_mm.ops``."""

import runpy
import sys

import pytest
import torch

from fcvit_mm import ops
from fcvit_mm.errors import UserError
from fcvit_mm.ops import __main__ as command
from fcvit_mm.ops import conditions


def marked(output):
    """Operation -> the implementation that its table says runs."""
    found, current = {}, None
    for line in output.splitlines():
        if line.startswith('-> '):
            found[current] = line.split()[1]
        elif line and not line.startswith(' '):
            current = line.split(':')[0]
    return found


def test_prints_every_row_with_its_condition_and_reason(capsys):
    command.main(['--shape', '1', '8', '6', '6'])
    output = capsys.readouterr().out
    words = ' '.join(output.split())
    for op in ops.OPERATIONS:
        assert f'{op.__name__}: x (1, 8, 6, 6)' in words
        for row in op.table:
            recorded = '' if row.traceable else '; eager mode only'
            assert f'{row.name} when {row.condition}{recorded} why {row.why}' in words
    assert set(marked(output)) == {op.__name__ for op in ops.OPERATIONS}
    assert max(map(len, output.splitlines())) <= command.WIDTH


@pytest.mark.parametrize(
    'arguments, name',
    [
        (['channel_mixer', '--shape', '8', '64', '56', '56', '--layout', 'contiguous'], 'sliced'),
        (['channel_mixer', '--shape', '8', '64', '56', '56', '--grad', '--layout', 'contiguous'], 'composed'),
        (['channel_mixer', '--shape', '8', '64', '56', '56', '--dtype', 'bfloat16'], 'float32'),
        (['add_global_context', '--shape', '1', '8', '4', '4', '--dtype', 'float64'], 'matmul'),
        (['add_global_context', '--shape', '1', '8', '4', '4', '--layout', 'contiguous'], 'reference'),
        (['add_global_context', '--shape', '0', '8', '4', '4', '--dtype', 'float64'], 'reference'),
        (['dynamic_depthwise_conv2d', '--shape', '2', '8', '4', '4'], 'image_by_image'),
        (['depthwise_conv2d', '--shape', '2', '8', '4', '4', '--device', 'meta'], 'reference'),
        (['gelu_', '--shape', '2', '8', '4', '4', '--dtype', 'float64', '--grad'], 'permuted'),
    ],
)
def test_marks_the_chosen_implementation(monkeypatch, capsys, arguments, name):
    monkeypatch.setattr(conditions, 'cpu_convolves', lambda dtype: dtype not in conditions.HALF)
    command.main(arguments)
    assert marked(capsys.readouterr().out) == {arguments[0]: name}


def test_shows_the_reference_mode(capsys):
    with ops.use_ops('reference'):
        command.main(['gelu_', '--shape', '1', '8', '4', '4'])
    output = capsys.readouterr().out
    assert 'mode reference' in output and marked(output) == {'gelu_': 'reference'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['depthwise_conv'], 'operation is depthwise_conv, expected one of conv2d, depthwise_conv2d, '),
        (['--shape', '8', '64', '56'], '--shape is 8 64 56, expected four numbers B C H W'),
        (['--shape', '8', '64', '56', '0'], '--shape is 8 64 56 0, expected four numbers'),
        (['--shape', '8', '64', '56', 'x'], '--shape is 8 64 56 x, expected four numbers'),
        (['--dtype', 'int8'], '--dtype is int8, expected one of float32, float64, float16, bfloat16'),
        (['--layout', 'nhwc'], '--layout is nhwc, expected one of channels_last, contiguous'),
        (['--device', 'tpu'], '--device is tpu, which PyTorch cannot use on this machine .*: try --device cpu'),
        (['--device', 'cuda:99'], '--device is cuda:99, which PyTorch cannot use on this machine'),
        (
            ['gelu_', '--shape', '9999999', '9999', '9999', '9'],
            '--shape is 9999999 9999 9999 9, which does not fit in the memory of cpu: try a smaller one',
        ),
    ],
)
def test_refuses_bad_values(arguments, message):
    with pytest.raises(UserError, match=message):
        command.main(arguments)


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(*args):
        raise RuntimeError('a defect')

    monkeypatch.setattr(command, 'describe', fail)
    with pytest.raises(RuntimeError, match='a defect'):
        command.main(['gelu_', '--shape', '1', '8', '4', '4'])


def test_command_ends_with_one_message(monkeypatch):
    """sys.exit with a message: status 1."""
    monkeypatch.setattr(sys, 'argv', ['__main__.py', '--dtype', 'int8'])
    with pytest.raises(SystemExit, match='^__main__.py: --dtype is int8, expected one of'):
        runpy.run_module('fcvit_mm.ops', run_name='__main__')


def test_arguments_have_the_requested_dtype_and_layout():
    x = command.make_map(['2', '8', '4', '4'], 'float16', 'channels_last', 'cpu')
    args = command.make_call(ops.conv2d, x, torch.float16, torch.channels_last, grad=True)
    assert args[0].is_contiguous(memory_format=torch.channels_last)
    assert all(arg.dtype == torch.float16 and arg.requires_grad for arg in args)
