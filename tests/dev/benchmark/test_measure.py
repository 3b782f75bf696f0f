"""Functions are timed in turn; ratios are computed per round; peak memory."""

from pathlib import Path

import pytest
import torch


def test_functions_are_timed_in_turn(load):
    measure = load('measure')
    order = []
    times = measure.interleave(
        {name: lambda name=name: order.append(name) for name in 'abc'},
        rounds=2,
        warmup=1,
        device=torch.device('cpu'),
        repeat=2,
    )
    assert ''.join(order) == 'aabbcc' * 3
    assert {name: len(values) for name, values in times.items()} == dict(a=2, b=2, c=2)


def test_ratios_are_computed_per_round(load):
    measure = load('measure')
    # The machine was three times slower in the second round, for both functions.
    found = measure.ratio([1.0, 3.0, 1.0], baseline=[2.0, 6.0, 4.0])
    assert found.rounds == (2, 2, 3) and found.medians == 4
    with pytest.raises(ValueError, match='2 times and 1 of the baseline'):
        measure.ratio([1.0, 2.0], [1.0])


def test_peak_memory_does_not_count_freed_memory(load, monkeypatch):
    measure = load('measure')
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = measure.in_child(load('allocation').allocate, 50)
    assert found / measure.MIB == pytest.approx(50, abs=2)


def test_peak_memory_of_a_killed_process_is_unknown(load):
    import signal

    assert load('measure').in_child(signal.raise_signal, signal.SIGKILL) is None
