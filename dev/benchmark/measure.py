"""Time and memory of calls, and statistics of repeated times."""

import ctypes
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch

MIB = 2**20


def timed(call: Callable[[], Any], device: torch.device, repeat: int = 1) -> float:
    """Return the seconds per call, the mean of ``repeat`` calls; no other work is queued on the device."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeat):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def best(call: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """Return the seconds of the fastest of several calls, after an untimed one."""
    call()
    return min(timed(call, device) for _ in range(times))


def interleave(
    calls: Dict[str, Callable[[], Any]],
    rounds: int,
    warmup: int,
    device: torch.device,
    repeat: int = 1,
    after_round: Callable[[int], None] = lambda done: None,
) -> Dict[str, List[float]]:
    """Time calls in turn (A B C A B C ...), so that other load on the machine affects all of them.

    Args:
        calls (dict[str, Callable]): Calls to time.
        rounds (int): Number of rounds; each round runs every call.
        warmup (int): Untimed rounds before them.
        device (torch.device): Device that the calls run on.
        repeat (int): Number of calls per measurement.
        after_round (Callable): Function of the number of finished rounds.

    Returns:
        dict[str, list[float]]: Seconds per call, one value per round.
    """
    times: Dict[str, List[float]] = {name: [] for name in calls}
    for done in range(-warmup, rounds):
        for name, call in calls.items():
            seconds = timed(call, device, repeat)
            if done >= 0:
                times[name].append(seconds)
        if done >= 0:
            after_round(done + 1)
    return times


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


class Ratio(NamedTuple):
    """The factor by which something is faster than a baseline.

    Attributes:
        rounds (Spread): Ratios within each round, in which the speed of the machine cancels out.
        medians (float): Ratio of the two medians.
    """

    rounds: Spread
    medians: float


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Return the baseline's time over this one's, from the same rounds of one run."""
    if len(times) != len(baseline):
        raise ValueError(f'{len(times)} times and {len(baseline)} of the baseline, expected the same number')
    return Ratio(spread(np.divide(baseline, times)), float(np.median(baseline) / np.median(times)))


def peak_growth(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak memory of a call in bytes, without what was allocated before (weights, inputs, optimizer state).

    The call must have run before. On CUDA this is memory of PyTorch's allocator. On a CPU it is resident memory of the
    process, including allocations of libraries; see :func:`in_child`.
    """
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # resets the peak to the present resident memory
    before = _resident('VmRSS')
    call()
    return max(0, _resident('VmHWM') - before)


def _resident(key: str) -> int:
    with open('/proc/self/status') as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024


def in_child(function: Callable[..., Any], *args: Any) -> Optional[Any]:
    """Call a function in a new process, whose resident memory contains nothing else.

    ``None`` if memory cannot be measured in this way (only on Linux with glibc), or if it ran out.
    """
    if not sys.platform.startswith('linux') or not hasattr(ctypes.CDLL(None), 'mallopt'):
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _return_freed_memory) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:  # killed
            return None


def _return_freed_memory() -> None:
    """Make glibc return freed blocks of a tensor's size to the system, so that reused memory counts in the peak."""
    m_mmap_threshold, m_trim_threshold = -3, -1
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 64 * 1024)
    libc.mallopt(m_trim_threshold, 64 * 1024)
