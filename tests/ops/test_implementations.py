"""Common tests of every implementation of every operation; see operations.py."""

import pytest
import torch
from operations import CHANNELS, EACH_OPERATION, ROWS, SIZES, TOLERANCES, applies, assert_agrees, cast, random_call

from fcvit_mm import ops
from fcvit_mm.ops.dispatch import Operation


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('op, row', ROWS)
def test_agrees_with_the_reference(small_machine, op, row, size):
    """Values and gradients, in every dtype, both layouts, odd sizes, one image and none."""
    if not assert_agrees(op, row, SIZES[size]):
        pytest.skip(f'{row.name} of {op.__name__} is not for maps of {size}')


@pytest.mark.parametrize('op, row', ROWS)
def test_applies_to_some_call(small_machine, op, row):
    """Each condition is met by some call, so each implementation is compared above."""
    assert any(
        applies(row, cast(random_call(op, size), dtype, layout))
        for size in SIZES.values()
        for dtype in TOLERANCES
        for layout in ('channels_last', 'contiguous')
    )


@pytest.mark.parametrize('op, row', ROWS)
def test_row_has_a_condition_and_a_reason(op, row):
    assert row.condition and row.why and row.name.isidentifier()
    assert len({other.name for other in op.table}) == len(op.table)


@EACH_OPERATION
def test_trace_works_for_other_sizes(op):
    """A graph of standard operations, for any number of images and any size."""
    args = cast(random_call(op, (2, 9, 8)), torch.float32, 'channels_last')
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]

    def call(*given):
        full = list(args)
        for i, tensor in zip(tensors, given):
            full[i] = tensor
        return op(*full)

    traced = torch.jit.trace(call, [args[i] for i in tensors])
    graph = str(traced.inlined_graph)
    assert 'PythonOp' not in graph and 'fcvit_mm' not in graph.replace('fcvit_mm/', '')
    for size in ((2, 9, 8), (3, 5, 12), (1, 1, 1)):
        other = cast(random_call(op, size), torch.float32)
        expected = op.reference(*other)
        torch.testing.assert_close(traced(*(other[i].clone() for i in tensors)), expected, rtol=1e-4, atol=1e-4)


@EACH_OPERATION
def test_compiles_to_one_graph(op):
    args = cast(random_call(op, (2, 9, 8)), torch.float32, 'channels_last')
    expected = op.reference(*args)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *given: op(*given), backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(*args), expected, rtol=1e-4, atol=1e-4)


@EACH_OPERATION
def test_supports_function_transforms(op):
    """Under ``vmap`` and ``jvp`` of torch.func, also of a map in channels_last."""
    x, *others = cast(random_call(op, (2, 4, 5)), torch.float64, 'channels_last')

    def call(x):
        return op(x, *others)

    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(torch.func.vmap(call)(batch), torch.stack([op.reference(x, *others) for x in batch]))
    _, got = torch.func.jvp(call, (x,), (torch.ones_like(x),))
    _, expected = torch.func.jvp(lambda x: op.reference(x, *others), (x.contiguous(),), (torch.ones_like(x),))
    torch.testing.assert_close(got, expected)


def test_every_operation_is_listed():
    """What the package exports as an operation is in OPERATIONS, under its name."""
    exported = {name for name in ops.__all__ if isinstance(getattr(ops, name), Operation)}
    assert exported == {op.__name__ for op in ops.OPERATIONS}


@EACH_OPERATION
def test_example_fits_any_number_of_channels(op):
    for channels in (1, 3, CHANNELS):
        args = random_call(op, (1, 2, 3), channels)
        assert op(*args).shape[2:] == (2, 3)
