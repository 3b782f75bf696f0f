"""What is known about who records."""

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


def test_a_trace_is_for_a_file_and_any_size():
    seen = seen_while(lambda function: torch.jit.trace(function, torch.ones(2), check_trace=False))
    assert seen == dict.fromkeys((*STATES, 'records_variable'), True)


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_dynamo_compiling'), reason='this torch cannot tell a compiler from an exporter'
)
def test_a_compiler_is_for_this_process():
    def function(x):
        for_file = tracing.records_file() or tracing.records_any_size() or tracing.is_exporting()
        return x + 1 if tracing.is_traced() and not for_file else x

    compiled = torch.compile(function, backend='eager', fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert function(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch before 2.7 cannot tell')
def test_an_exporter_is_for_a_file_and_any_size():
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + (tracing.records_any_size() + 2 * tracing.records_file() + 4 * tracing.is_traced())

    exported = torch.export.export(Module(), (torch.ones(2),))
    assert exported.module()(torch.zeros(2)).tolist() == [7, 7]


def test_a_compiler_takes_a_constant():
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


def test_a_compiler_leaves_the_function_of_a_constant():
    """Before torch 2.6, Dynamo puts the constant among the globals in place of what has the name of its function."""
    compiled = torch.compile(lambda x: x + 1 if is_odd(3) else x, backend='eager', fullgraph=True)
    assert compiled(torch.ones(1)).item() == 2
    assert is_odd(5) is True and is_odd.__name__ == 'is_odd'
