import logging

import pytest

from fcvit_mm.preflight import limits, log
from fcvit_mm.preflight.limits import TimeLimit, spread


class Clock:
    """A replacement of the module time, whose time the tests set."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, 'time', clock)
    return clock


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(log, 'print_log', lambda text, logger, level: lines.append((level, text)))
    return lines


def read(clock, items):
    found = []
    for item in items:
        found.append(item)
        clock.now += 1
    return found


def test_part_ends_after_its_seconds_and_logs_the_number_of_items(clock, logged):
    limit = TimeLimit(10)
    assert read(clock, limit.part(range(4), 5, 'all of them')) == [0, 1, 2, 3] and logged == []
    assert read(clock, limit.part(range(9), 2, 'masks read')) == [0, 1, 2]
    assert logged == [(logging.INFO, 'masks read: 3 of 9 in 3.0 s, the time limit')]


def test_stream_ends_after_its_seconds(clock, logged):
    limit = TimeLimit(10)
    assert read(clock, limit.stream(iter(range(4)), 5, 'x')) == [0, 1, 2, 3] and logged == []
    assert read(clock, limit.stream(iter(range(9)), 2, 'files searched')) == [0, 1, 2]
    assert logged == [(logging.INFO, 'files searched: 3 in 3.0 s, the time limit')]


def test_total_time_is_limited_but_each_part_checks_one_item(clock, logged):
    limit = TimeLimit(3)
    clock.now += 7
    assert read(clock, limit.part(range(5), 5, 'x')) == [0]
    with limit.pause():
        clock.now += 50
    # The pause is excluded: the end of 103 s moves by 50 s.
    assert limit.paused == 50 and limit.end == 153
    limit.report()
    assert logged[-1][1].startswith('Preflight checks took 58.0 s, of which 50.0 s for building the data sets')


def test_share_of_the_remaining_time(clock, logged):
    limit = TimeLimit(10)
    first = limit.share(2)
    with first.pause():
        clock.now += 4
    assert read(clock, first.part(range(20), 20, 'x')) == [0, 1, 2, 3, 4, 5]
    limit.take(first)
    # 6 of 10 seconds were used, and 4 more were excluded.
    assert limit.paused == 4 and limit.end - clock.now == 4 and limit.share(1).end == limit.end


def test_pause_that_ends_with_an_error_is_excluded(clock):
    limit = TimeLimit(3)
    with pytest.raises(KeyError), limit.pause():
        clock.now += 5
        raise KeyError
    assert limit.paused == 5


def test_reserved_time_is_available():
    limit = TimeLimit(0)
    limit.reserve(60)
    assert list(limit.part([1, 2, 3], 60, 'numbers read')) == [1, 2, 3]
    end = limit.end
    limit.reserve(1)
    assert limit.end == end


def test_items_are_spread_evenly():
    assert spread(range(100), 3) == [0, 49, 99] and spread([1], 3) == [1]
