import functools
import itertools
import math
import pickle
from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler

from fcvit_mm.engine.hooks.resumable_sampler import EpochPart, Index, ResumableBatchSampler, hash_seed
from fcvit_mm.registry import DATA_SAMPLERS

NUMBER = 37


class Wide(list):
    def get_data_info(self, index):
        return dict(width=10, height=15 if index % 3 else 5)


@DATA_SAMPLERS.register_module()
class OrientationBatchSampler:
    """Batches of one orientation, as mmdet's AspectRatioBatchSampler makes them."""

    def __init__(self, sampler, batch_size):
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self):
        waiting = {True: [], False: []}
        for index in self.sampler:
            info = self.sampler.dataset.get_data_info(index)
            group = waiting[info['width'] < info['height']]
            group.append(index)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()
        rest = waiting[True] + waiting[False]
        yield from (rest[start : start + self.batch_size] for start in range(0, len(rest), self.batch_size))

    def __len__(self):
        return math.ceil(len(self.sampler) / self.batch_size)


def make(kind, processes, rank, size, batches='BatchSampler', monkeypatch=None, **options):
    """Build the sampler of process ``rank``."""
    for place in ('fcvit_mm.engine.hooks.resumable_sampler', 'mmengine.dataset.sampler'):
        monkeypatch.setattr(f'{place}.get_dist_info', lambda: (rank, processes))
    sampler = kind(Wide(range(NUMBER)), seed=5, **options)
    return ResumableBatchSampler(sampler, size, dict(type=batches))


@pytest.mark.parametrize('round_up', [True, False])
def test_epoch_has_the_order_of_the_sampler(round_up, monkeypatch):
    for processes, rank in ((1, 0), (2, 1), (4, 0), (4, 3)):
        batches = make(DefaultSampler, processes, rank, 3, monkeypatch=monkeypatch, round_up=round_up)
        assert list(itertools.chain(*batches)) == list(batches.sampler) and len(batches) == len(list(batches))


#: Starts of one run: processes, batch size, batches of each.
STARTS = ((1, 3, 2), (2, 2, 3), (4, 1, 2), (1, 8, 99))


@pytest.mark.parametrize('batches', ['BatchSampler', 'OrientationBatchSampler'])
@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
def test_each_sample_once_for_any_processes_and_batch_sizes(kind, batches, monkeypatch):
    seen, parts = [], []
    for processes, size, number in STARTS:
        number = min(number, 4)
        for rank in range(processes):
            sampler = make(kind, processes, rank, size, batches, monkeypatch)
            sampler.resume(parts)
            seen += itertools.chain(*itertools.islice(sampler, number))
        parts.append(EpochPart(processes, size, number))
    places = [index.place for index in seen]
    assert len(set(places)) == len(places) and len({index.seed for index in seen}) == len(seen)
    if kind is DefaultSampler:
        assert sorted(seen) == list(range(NUMBER))
    elif batches == 'BatchSampler':
        assert sorted(places) == list(range(len(places))) and len(places) > NUMBER


def test_remaining_batches_are_counted(monkeypatch):
    sampler = functools.partial(make, DefaultSampler, monkeypatch=monkeypatch)
    assert sampler(1, 0, 4).left([EpochPart(1, 4, 3)]) == 10 - 3
    assert sampler(2, 1, 4).left([EpochPart(1, 4, 3)]) == 4  # 25 samples of 37, 13 for each
    assert sampler(1, 0, 4).left([EpochPart(1, 4, 10)]) == 0


def test_seeds_do_not_depend_on_the_processes(monkeypatch):
    one = {index: index.seed for batch in make(DefaultSampler, 1, 0, 3, monkeypatch=monkeypatch) for index in batch}
    for rank in range(2):
        for batch in make(DefaultSampler, 2, rank, 2, monkeypatch=monkeypatch):
            assert all(one[index] == index.seed for index in batch)


def test_batches_can_be_skipped_and_have_seeds():
    class Sampler(SimpleNamespace):
        def __iter__(self):
            return iter(range(10))

        def __len__(self):
            return 10

    make = functools.partial(ResumableBatchSampler, batch_size=4, batch_sampler=dict(type='BatchSampler'))
    sampler = make(Sampler(seed=1, epoch=0))
    complete = list(sampler)
    assert len(sampler) == 3 and complete == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sampler.resume([EpochPart(1, 4, 2)])
    rest = list(sampler)
    assert rest == complete[2:] and [index.seed for index in rest[0]] == [index.seed for index in complete[2]]
    assert list(sampler) == complete  # once
    seeds = {
        index.seed
        for epoch in range(3)
        for seed in range(3)
        for batch in make(Sampler(seed=seed, epoch=epoch))
        for index in batch
    }
    assert len(seeds) == 90
    copy = pickle.loads(pickle.dumps(complete[0][1]))
    assert copy == 1 and isinstance(copy, Index) and copy.seed == complete[0][1].seed


def test_mixed_seeds_differ():
    assert len({hash_seed(a, b) for a in range(100) for b in range(100)}) > 9990
    assert 0 <= hash_seed(1) < 2**32 and hash_seed(1, 2) != hash_seed(12) and hash_seed(2, 1) != hash_seed(1, 2)
