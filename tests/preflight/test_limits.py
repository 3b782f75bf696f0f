import logging

import pytest

from fcvit_mm.preflight import limits, remarks
from fcvit_mm.preflight.limits import TimeLimit, spread


class Clock:
    """Stands in for the clock: time passes where a test says so."""

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
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(remarks, 'print_log', lambda text, logger, level: lines.append((level, text)))
    return lines


def seen(clock, items):
    found = []
    for item in items:
        found.append(item)
        clock.now += 1
    return found


def test_a_part_ends_after_its_seconds_and_says_what_is_left_out(clock, said):
    limit = TimeLimit(10)
    assert seen(clock, limit.part(range(4), 5, 'all of them')) == [0, 1, 2, 3] and said == []
    assert seen(clock, limit.part(range(9), 2, 'masks read')) == [0, 1, 2]
    assert said == [(logging.INFO, 'masks read: 3 of 9 in 3.0 s, the time limit')]


def test_items_of_unknown_number(clock, said):
    limit = TimeLimit(10)
    assert seen(clock, limit.stream(iter(range(4)), 5, 'x')) == [0, 1, 2, 3] and said == []
    assert seen(clock, limit.stream(iter(range(9)), 2, 'files searched')) == [0, 1, 2]
    assert said == [(logging.INFO, 'files searched: 3 in 3.0 s, the time limit')]


def test_the_total_time_is_limited_but_each_part_checks_one_item(clock, said):
    limit = TimeLimit(3)
    clock.now += 7
    assert seen(clock, limit.part(range(5), 5, 'x')) == [0]
    with limit.pause():
        clock.now += 50
    # Building does not count: 3 s in all, 7 gone, and one item's.
    assert limit.paused == 50 and limit.end == 153
    limit.report()
    assert said[-1][1].startswith('Preflight checks took 58.0 s, of which 50.0 s for building the data sets')


def test_shares(clock, said):
    limit = TimeLimit(10)
    first = limit.share(2)
    with first.pause():
        clock.now += 4
    assert seen(clock, first.part(range(20), 20, 'x')) == [0, 1, 2, 3, 4, 5]
    limit.take(first)
    # 6 of 10 seconds are gone, 4 that do not count as well.
    assert limit.paused == 4 and limit.end - clock.now == 4 and limit.share(1).end == limit.end


def test_time_of_an_error_inside_a_pause_does_not_count_either(clock):
    limit = TimeLimit(3)
    with pytest.raises(KeyError), limit.pause():
        clock.now += 5
        raise KeyError
    assert limit.paused == 5


def test_time_that_is_reserved_is_there_whatever_others_took():
    limit = TimeLimit(0)
    limit.reserve(60)
    assert list(limit.part([1, 2, 3], 60, 'numbers read')) == [1, 2, 3]
    end = limit.end
    limit.reserve(1)
    assert limit.end == end


def test_samples_are_spread_evenly():
    assert spread(range(100), 3) == [0, 49, 99] and spread([1], 3) == [1]
