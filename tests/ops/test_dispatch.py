"""The choice of an implementation, and the modes."""

import importlib.util

import pytest
import torch

from fcvit_mm import ops
from fcvit_mm.errors import UserError
from fcvit_mm.ops import dispatch
from fcvit_mm.ops.dispatch import Implementation, current_mode, operation, use_ops


@operation()
def _twice(x):
    """Two times x."""
    return 2 * x


_twice.implementations = (
    Implementation('thrice', lambda x: 3 * x, when=lambda x: x.ndim == 1, condition='one dimension', why='more'),
    Implementation('four_times', lambda x: 4 * x, lambda x: x.ndim == 2, 'two dimensions', 'most', traceable=True),
)


def test_runs_the_first_implementation_that_applies():
    one, two, three = torch.ones(1), torch.ones(1, 1), torch.ones(1, 1, 1)
    assert [_twice(x).item() for x in (one, two, three)] == [3, 4, 2]
    assert [_twice.choose(x).name for x in (one, two, three)] == ['thrice', 'four_times', 'reference']
    with use_ops('reference'):
        assert [_twice(x).item() for x in (one, two, three)] == [2, 2, 2]
        with use_ops('auto'):
            assert _twice(one).item() == 3
    assert _twice(one).item() == 3


def test_repr_of_an_operation_shows_its_table():
    assert repr(_twice) == '_twice (thrice, four_times, reference)'
    assert [row.name for row in _twice.table] == ['thrice', 'four_times', 'reference']
    assert _twice.__doc__ == 'Two times x.'


def test_mode_is_restored_after_an_error():
    with pytest.raises(RuntimeError), use_ops('reference'):
        raise RuntimeError
    assert _twice(torch.ones(1)).item() == 3


def test_traces_use_traceable_implementations_only():
    for x, factor in ((torch.ones(1), 2), (torch.ones(1, 1), 4)):
        traced = torch.jit.trace(lambda x: _twice(x), x, check_trace=False)
        assert traced(x).sum().item() == factor


def test_arguments_are_checked_but_not_in_a_trace():
    def refuse(x):
        raise ValueError('refused')

    checked = operation(refuse)(lambda x: x + 1)
    with pytest.raises(ValueError, match='refused'):
        checked(torch.ones(1))
    assert torch.jit.trace(lambda x: checked(x), torch.ones(1), check_trace=False)(torch.ones(1)).item() == 2


def test_unknown_mode():
    with pytest.raises(UserError, match=r"mode is 'fast', expected one of auto, rules, reference"), use_ops('fast'):
        pass


def test_plain_is_a_deprecated_name_of_the_reference_mode():
    message = "'plain' as mode is deprecated.*use 'reference'"
    with pytest.warns(DeprecationWarning, match=message) as caught, use_ops('plain'):
        assert current_mode() == 'reference'
    assert caught[0].filename == __file__
    assert current_mode() == 'auto'


@pytest.fixture
def mode_at_import(monkeypatch):
    """Return a function that sets the environment variable, imports the module again and returns its mode."""

    def read(value):
        monkeypatch.setenv('FCVIT_MM_OPS', value)
        spec = importlib.util.spec_from_file_location('fcvit_mm.ops.imported_again', dispatch.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.current_mode()

    return read


def test_environment_variable(mode_at_import):
    assert [mode_at_import(value) for value in ('auto', 'reference')] == ['auto', 'reference']
    with pytest.warns(DeprecationWarning, match="'plain' as the environment variable FCVIT_MM_OPS is deprecated"):
        assert mode_at_import('plain') == 'reference'
    with pytest.raises(UserError, match="variable FCVIT_MM_OPS is 'quick', expected one of auto, rules, reference"):
        mode_at_import('quick')


def test_deprecated_names_of_operations():
    for old, new in {'position_means': 'channel_means', 'normalised_similarity': 'normalized_similarity'}.items():
        with pytest.warns(DeprecationWarning, match=f'fcvit_mm.ops.{old} is deprecated.*use fcvit_mm.ops.{new}'):
            assert getattr(ops, old) is getattr(ops, new)
    with pytest.raises(AttributeError, match="'fcvit_mm.ops' has no attribute 'position_mean'"):
        _ = ops.position_mean
