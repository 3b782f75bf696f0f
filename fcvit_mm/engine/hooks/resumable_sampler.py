"""Batch sampler that resumes at its position in the run, also with another batch size or number of processes."""

import copy
import functools
import hashlib
import itertools
import math
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from ..config import type_name


def hash_seed(*numbers: int) -> int:
    """Hash numbers to a 32-bit seed; unlike a sum, it differs between combinations."""
    digest = hashlib.blake2b(','.join(map(str, numbers)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, 'little')


class Index(int):
    """Index of a sample, with its position in the epoch and the seed for loading it."""

    seed: int
    place: int

    def __new__(cls, value: int, seed: int = 0, place: int = -1) -> 'Index':
        self = super().__new__(cls, value)
        self.seed = seed
        self.place = place
        return self

    def __reduce__(self) -> Tuple[type, Tuple[int, int, int]]:
        return Index, (int(self), self.seed, self.place)


class EpochPart(NamedTuple):
    """Part of an epoch that a run trained between two starts.

    Attributes:
        processes (int): Number of processes.
        batch_size (int): Batch size of each process.
        batches (int): Number of batches trained by each process.
    """

    processes: int
    batch_size: Any
    batches: int


#: Function that returns a new iterator over an epoch: pairs of position and index of the sample.
Order = Callable[[], Iterator[Tuple[int, int]]]


def find_order(sampler: Any) -> Optional[Order]:
    """Find the order of samples that a sampler distributes to the processes in turn.

    Returns:
        callable | None: ``None`` for samplers not known to do so; MMEngine's samplers do.
    """
    kind = type(sampler)
    if getattr(kind, '__iter__', None) is DefaultSampler.__iter__:

        def indices() -> Iterator[int]:
            alone = copy.copy(sampler)
            alone.rank, alone.world_size = 0, 1
            alone.num_samples = alone.total_size = len(sampler.dataset)
            return iter(alone)

    elif issubclass(kind, InfiniteSampler) and all(
        getattr(kind, name) is getattr(InfiniteSampler, name)
        for name in ('__iter__', '_indices_of_rank', '_infinite_indices')
    ):
        indices = sampler._infinite_indices
    else:
        return None
    return lambda: enumerate(indices())


class Share(Sampler):
    """Sampler of one process, with one of every ``processes`` samples of an order.

    Args:
        sampler (Sampler): Sampler of the order; its attributes are forwarded.
        order (callable): The order.
        rank (int): Rank of the process.
        processes (int): Number of processes.
        number (int, optional): Length of the order, if known.
    """

    def __init__(self, sampler: Any, order: Order, rank: int, processes: int, number: Optional[int] = None) -> None:
        self.sampler, self.order, self.rank, self.processes, self.number = sampler, order, rank, processes, number
        self.ends = not isinstance(sampler, InfiniteSampler)
        self.round_up = getattr(sampler, 'round_up', True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _number(self) -> int:
        return sum(1 for _ in self.order()) if self.number is None else self.number

    def __iter__(self) -> Iterator[Index]:
        for place, index in itertools.islice(self.order(), self.rank, None, self.processes):
            yield Index(index, place=place)
        number = self._number() if self.ends and self.round_up else 0
        added = self.rank - number % self.processes if number % self.processes else -1
        if added >= 0:  # the first samples again, so that all processes have the same number
            place, index = next(itertools.islice(self.order(), added % number, None))
            yield Index(index, place=place)

    def __len__(self) -> int:
        if not self.ends:
            return len(self.sampler)
        number = self._number()
        return math.ceil(number / self.processes) if self.round_up else len(range(self.rank, number, self.processes))


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(BatchSampler):
    """Batches of a wrapped batch sampler, each sample with a seed that only depends on its position in the run.

    So augmentation is the same whether a run was interrupted or not, and for any number of workers. An epoch resumes
    after the samples already trained, without loading them; with samplers whose order is known (:func:`find_order`),
    also with another batch size or number of processes, which then share the remaining samples.

    Args:
        sampler (Sampler): Sampler of the indices.
        batch_size (int): Batch size of each process.
        batch_sampler (dict): Config of the wrapped batch sampler; ``dict(type='BatchSampler')`` is torch's.
    """

    def __init__(self, sampler: Any, batch_size: int, batch_sampler: dict) -> None:
        self.config = dict(batch_sampler)
        self.sampler: Any = sampler
        self.batch_size = batch_size
        self.rank, self.processes = get_dist_info()
        self.order = find_order(sampler)
        self.batches = self._group(sampler if self.order is None else self._share(), batch_size)
        self.drop_last = getattr(self.batches, 'drop_last', False)
        self.parts: List[EpochPart] = []

    @property
    def name(self) -> str:
        """Type of the wrapped batch sampler."""
        return type_name(self.config)

    def resume(self, parts: Sequence[EpochPart]) -> None:
        """Let the next epoch start after the samples already trained."""
        self.parts = list(parts)

    def split(self, parts: Sequence[EpochPart]) -> Tuple[List[EpochPart], int]:
        """Return the parts trained with other settings, and the number of batches trained since then."""
        earlier = list(parts)
        if earlier and earlier[-1][:2] == (self.processes, self.batch_size):
            return earlier[:-1], earlier[-1].batches
        return earlier, 0

    def left(self, parts: Sequence[EpochPart]) -> int:
        """Return the number of remaining batches of an epoch in this process."""
        earlier, done = self.split(parts)
        return len(self._rest(earlier)) - done

    def __iter__(self) -> Iterator[List[int]]:
        (earlier, done), self.parts = self.split(self.parts), []
        if self.order is None and isinstance(self.sampler, InfiniteSampler):
            # All iterators over the sampler share one stream; a new data loader must start at its beginning.
            self.sampler.indices = self.sampler._indices_of_rank()
        # MMEngine sets these on its samplers; a sampler without an epoch never ends.
        seed, epoch = getattr(self.sampler, 'seed', None) or 0, getattr(self.sampler, 'epoch', 0)
        for number, batch in enumerate(self._rest(earlier)):
            if number < done:
                continue
            if self.order is not None:
                yield [Index(index, hash_seed(seed, epoch, index.place), index.place) for index in batch]
            else:
                places = enumerate(batch)
                yield [
                    Index(index, hash_seed(seed, self.rank, epoch, number, place)) if isinstance(index, int) else index
                    for place, index in places
                ]

    def __len__(self) -> int:
        return len(self.batches)

    def _group(self, share: Any, batch_size: Any) -> Any:
        """Build the wrapped batch sampler for a share of the samples."""
        if self.name == 'BatchSampler':
            return BatchSampler(share, batch_size, self.config.get('drop_last', False))
        return DATA_SAMPLERS.build(dict(self.config), default_args=dict(sampler=share, batch_size=batch_size))

    def _share(self) -> Share:
        """Return this process's share of a complete epoch."""
        assert self.order is not None
        number = len(self.sampler.dataset)
        return Share(self.sampler, self.order, self.rank, self.processes, number)

    def _rest(self, parts: Sequence[EpochPart]) -> Any:
        """Return this process's batches of the samples that some parts have left of an epoch."""
        if not parts:
            return self.batches
        assert self.order is not None, 'ResumableHook refuses'
        order = functools.reduce(self._without, parts, self.order)
        return self._group(Share(self.sampler, order, self.rank, self.processes), self.batch_size)

    def _without(self, order: Order, part: EpochPart) -> Order:
        if self.name == 'BatchSampler':  # the trained samples are the first ones
            number = part.processes * part.batch_size * part.batches
            return lambda: itertools.islice(order(), number, None)
        trained: Set[int] = set()
        for rank in range(part.processes):
            batches = self._group(Share(self.sampler, order, rank, part.processes), part.batch_size)
            trained.update(index.place for batch in itertools.islice(batches, part.batches) for index in batch)
        return lambda: (each for each in order() if each[0] not in trained)
