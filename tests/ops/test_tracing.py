"""Detection of tracing, compiling and exporting."""

import pytest
import torch

from fcvit_mm.ops import tracing

STATES = ('is_traced', 'records_any_size', 'records_file')


def states(x):
    return {name: getattr(tracing, name)() for name in STATES}


def seen_while(record):
    """The states, and whether the number of images is a variable, while something records a function."""
    seen = {}

    def function(x):
        seen.update(states(x), records_variable=tracing.records_variable(x.shape[0]))
        return x + 1

    record(function)
    return seen


def test_in_eager_mode_nothing_records():
    assert seen_while(lambda function: function(torch.ones(2))) == dict.fromkeys((*STATES, 'records_variable'), False)


def test_trace_records_a_file_for_any_size():
    seen = seen_while(lambda function: torch.jit.trace(function, torch.ones(2), check_trace=False))
    assert seen == dict.fromkeys((*STATES, 'records_variable'), True)


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_dynamo_compiling'), reason='this torch cannot tell a compiler from an exporter'
)
def test_compiler_records_no_file():
    def function(x):
        for_file = tracing.records_file() or tracing.records_any_size() or tracing.is_exporting()
        return x + 1 if tracing.is_traced() and not for_file else x

    compiled = torch.compile(function, backend='eager', fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert function(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch before 2.7 cannot tell')
def test_exporter_records_a_file_for_any_size():
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + (tracing.records_any_size() + 2 * tracing.records_file() + 4 * tracing.is_traced())

    exported = torch.export.export(Module(), (torch.ones(2),))
    assert exported.module()(torch.zeros(2)).tolist() == [7, 7]


def test_compiler_accepts_a_constant_function():
    calls = []

    @tracing.assume_constant
    def answer() -> bool:
        calls.append(len({3, 4}))
        return True

    compiled = torch.compile(lambda x: x + 1 if answer() else x, backend='eager', fullgraph=True)
    assert compiled(torch.ones(1)).item() == 2 and calls


@tracing.assume_constant
def is_odd(number: int) -> bool:
    return number % 2 == 1


def test_compiler_does_not_replace_a_constant_function():
    """Before torch 2.6, Dynamo replaces the global with the name of the function by the constant."""
    compiled = torch.compile(lambda x: x + 1 if is_odd(3) else x, backend='eager', fullgraph=True)
    assert compiled(torch.ones(1)).item() == 2
    assert is_odd(5) is True and is_odd.__name__ == 'is_odd'
