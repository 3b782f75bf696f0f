"""Choice of implementations by timing (autotuning), on devices that the tables were not tuned for.

The tables were tuned on CPUs with AVX2, AMD CPUs with AVX-512, and an H100. On other CPUs, and on every GPU, the
rows that apply to a call are timed at the first call of its kind, in training with their gradients, and compared
with the reference. The choices are stored in one file per device and version of the kernels (:func:`path_of_choices`),
so later runs compute the same.
"""

import ast
import hashlib
import json
import logging
import os
import statistics
import threading
import time
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..files import WriteError, write_atomic
from ..version import __version__
from .checks import autocast_dtype
from .conditions import is_channels_last, needs_grad

if TYPE_CHECKING:
    from .dispatch import Implementation

#: Capability and vendor of the CPUs that the tables were tuned on; an empty vendor means any.
TUNED_CPUS: Tuple[Tuple[str, str], ...] = (('AVX2', ''), ('AVX512', 'AuthenticAMD'))
#: Number of timing rounds, in which each row is called once, and the seconds after which no further round begins.
ROUNDS, SECONDS = 5, 0.5
#: Largest difference from the reference, relative to its largest value (at least 1).
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
#: A row replaces the preferred one if its time is below this fraction of the preferred row's time.
MARGIN = 0.95
#: Calls whose choice is cached by their exact shapes, per operation, before the cache is cleared.
MOST_SEEN = 4096

#: Key of a choice: the operation, and what :func:`kind_of_call` returns for its arguments.
Key = Tuple[Any, ...]


class Choice(NamedTuple):
    """A row and the times that it was chosen by, for a kind of call.

    Attributes:
        row (str): Name of the implementation that runs.
        milliseconds (dict[str, float]): Medians of those that were timed.
    """

    row: str
    milliseconds: Dict[str, float]


_choices: Dict[str, Dict[Key, Choice]] = {}
_seen: Dict[str, Dict[Tuple[Any, ...], 'Implementation']] = {}


def cpu_vendor() -> str:
    """Return the CPU's vendor as Linux names it, or an empty string."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            return next((line.partition(':')[2].strip() for line in file if line.startswith('vendor_id')), '')
    except OSError:
        return ''


@lru_cache(maxsize=None)
def _is_tuned_cpu() -> bool:
    capability, vendor = torch.backends.cpu.get_cpu_capability(), cpu_vendor()
    return any(capability == each and tuned_vendor in ('', vendor) for each, tuned_vendor in TUNED_CPUS)


def is_untuned(x: Any) -> bool:
    """Return whether a map is where the tables were not tuned: on a GPU, or on a CPU of another kind."""
    return isinstance(x, Tensor) and (x.is_cuda or (x.device.type == 'cpu' and not _is_tuned_cpu()))


def _may_measure(x: Tensor) -> bool:
    """Return whether a call may be timed now.

    Not in the deterministic mode of PyTorch, nor while operations are observed: during CUDA graph capture, by a
    counter, fake tensors or tensor subclasses.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.ndim == 4
        and x.numel() > 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.are_deterministic_algorithms_enabled()
        and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def kind_of_call(name: str, args: Sequence[Any]) -> Key:
    """Return the key of a choice: dtypes, layout, gradients, autocast, shapes.

    Of images x height x width only the next power of two counts, so that the image sizes of a detector are not measured
    one by one.

    Args:
        name (str): Name of the operation.
        args (Sequence): Arguments of the call; the first is a map ``(B, C, H, W)``.
    """
    x = args[0]
    images, channels, height, width = x.shape
    others = tuple(
        # Tensors with one row per image, such as the context vectors, have any number of rows.
        (*arg.shape[arg.ndim == 2 and arg.shape[0] == images :], str(arg.dtype)) if isinstance(arg, Tensor) else arg
        for arg in args[1:]
    )
    return (
        name,
        (images * height * width - 1).bit_length(),
        channels,
        str(x.dtype),
        is_channels_last(x),
        needs_grad(*(arg for arg in args if isinstance(arg, Tensor))),
        str(autocast_dtype(x)),
        others,
    )


def describe_kind(key: Key) -> str:
    """Describe a key that :func:`kind_of_call` returned."""
    name, bits, channels, dtype, is_last, grad, autocast, others = key
    words = [
        f'{name}  {2 ** (bits - 1) + 1 if bits else 1} to {2**bits} positions',
        f'{channels} channels',
        dtype.replace('torch.', ''),
        'channels_last' if is_last else 'contiguous',
    ]
    words += ['gradients'] * grad + [f'autocast to {autocast}'] * (autocast != 'None')
    shapes = [each[:-1] for each in others if isinstance(each, tuple) and len(each) == 5]
    return ', '.join(words + [f'weight {"x".join(map(str, shape))}' for shape in shapes])


def _quick_key(x: Tensor, args: Sequence[Any]) -> Tuple[Any, ...]:
    """Return a cheap key of a call (2 microseconds): all relevant properties of the map, few of the other arguments."""
    second = args[1] if len(args) > 1 else None
    return (
        x.shape,
        x.stride(),
        x.dtype,
        x.device,
        torch.is_grad_enabled() and (x.requires_grad or isinstance(second, Tensor) and second.requires_grad),
        torch.is_autocast_enabled(),
        second.shape if isinstance(second, Tensor) else second,
        len(args),
    )


def fastest(name: str, table: Sequence['Implementation'], args: Sequence[Any]) -> Optional['Implementation']:
    """Return the fastest row for a call; time the rows if this kind of call is new.

    Args:
        name (str): Name of the operation.
        table (Sequence[Implementation]): Implementations of the operation, the preferred first, the reference last.
        args (Sequence): The call's arguments; the first is a map ``(B, C, H, W)``.

    Returns:
        Implementation: ``None`` where the kind is new and cannot be timed now: the table's order decides.
    """
    x = args[0]
    seen = _seen.setdefault(name, {})
    glance = _quick_key(x, args)
    row = seen.get(glance)
    if row is not None and row.when(*args):
        return row
    if not _may_measure(x):
        return None
    rows = [row for row in table if row.when(*args)]
    if len(rows) == 1:
        return rows[0]
    device = device_name(x.device)
    known = _choices.get(device)
    if known is None:
        known = _choices[device] = read_choices(device)
    key = kind_of_call(name, args)
    choice = known.get(key)
    by_name = {row.name: row for row in rows}
    if choice is None or choice.row not in by_name:
        choice = _measure(name, rows, args)
        if not choice.milliseconds:  # cached below, so that not every call tries again
            choice = Choice(rows[0].name, {})
        else:
            known[key] = choice
            _keep(device, known)
    if len(seen) >= MOST_SEEN:
        seen.clear()
    seen[glance] = by_name[choice.row]
    return by_name[choice.row]


def _measure(name: str, rows: Sequence['Implementation'], args: Sequence[Any]) -> Choice:
    """Time the rows in a separate thread, where no hooks, checkpointing or modes of the caller are active."""
    found: List[Choice] = []
    grad = needs_grad(*(arg for arg in args if isinstance(arg, Tensor)))
    dtype = autocast_dtype(args[0])
    device, threads = args[0].device, torch.get_num_threads()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)

    def work() -> None:
        # Current device, autocast and the number of threads are settings of each thread.
        on_device = torch.cuda.device(device) if device.type == 'cuda' else nullcontext()
        torch.set_num_threads(threads)
        try:
            with on_device, torch.autocast(device.type, dtype, enabled=dtype is not None):
                found.append(_time_rows(name, rows, args, grad))
        except RuntimeError as error:
            _warn(f'{name} cannot be measured ({str(error).splitlines()[0]}): the choice follows its table')

    thread = threading.Thread(target=work, name='fcvit_mm measures')
    thread.start()
    thread.join()
    return found[0] if found else Choice('', {})


def _time_rows(name: str, rows: Sequence['Implementation'], args: Sequence[Any], grad: bool) -> Choice:
    device = args[0].device
    what = f'{name} of {tuple(args[0].shape)}, {args[0].dtype}, on {device_name(device)}'
    calls: Dict[str, Callable[[], Any]] = {}
    expected: Optional[List[Tensor]] = None
    with torch.set_grad_enabled(grad):
        for row in reversed(rows):  # the reference first: the others are compared with it
            call = _bind(row.function, args, grad)
            try:
                got = call()
                if expected is None:
                    expected = got
                elif not _agree(got, expected):
                    _warn(f'the implementation {row.name} of {what} differs from the reference')
                    continue
            except Exception as error:  # whatever a compiler or a driver raises
                if 'memory' in str(error) or expected is None:
                    raise
                _warn(f'the implementation {row.name} of {what} fails ({str(error).splitlines()[0]})')
                continue
            calls[row.name] = call
        seconds: Dict[str, List[float]] = {each: [] for each in calls}
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            for each, call in calls.items():
                seconds[each].append(_seconds(call, device))
            if time.perf_counter() - begin > SECONDS:
                break
    medians = {each: 1e3 * statistics.median(values) for each, values in seconds.items()}
    preferred = next(row.name for row in rows if row.name in medians)
    winner = min(medians, key=lambda each: medians[each] * (MARGIN if each == preferred else 1))
    if winner != preferred:
        _log_slower(name, preferred, winner, device_name(device))
    return Choice(winner, medians)


def _bind(function: Callable[..., Any], args: Sequence[Any], grad: bool) -> Callable[[], List[Tensor]]:
    """Return a call of a function with copies of the arguments; its outputs, and in training the gradients."""
    copies = [
        arg.detach().clone(memory_format=torch.preserve_format) if isinstance(arg, Tensor) else arg for arg in args
    ]
    leaves: List[Tensor] = []
    if grad:
        for arg, copied in zip(args, copies):
            if isinstance(arg, Tensor) and arg.requires_grad:
                leaves.append(copied.requires_grad_())

    def call() -> List[Tensor]:
        # Views, because autograd does not allow in-place operations on leaves.
        own = [arg.view_as(arg) if isinstance(arg, Tensor) and grad else arg for arg in copies]
        output = function(*own)
        outputs = [output] if isinstance(output, Tensor) else list(output)
        if not leaves:
            return outputs
        gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(each) for each in outputs], allow_unused=True)
        return outputs + [each for each in gradients if each is not None]

    return call


def _agree(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    if len(got) != len(expected):
        return False
    for one, other in zip(got, expected):
        if one.shape != other.shape:
            return False
        limit = TOLERANCES.get(other.dtype, 0.0)
        largest = other.detach().float().abs().max().clamp(min=1).item() if other.numel() else 1.0
        if other.numel() and not (one.float() - other.float()).abs().max().item() <= limit * largest:
            return False
    return True


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


@lru_cache(maxsize=None)
def device_name(device: torch.device) -> str:
    """Return the device that a choice is for: the GPU's name, or the CPU's instructions and number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads'


@lru_cache(maxsize=None)
def _digest_of_kernels() -> str:
    """Return a hash of the sources of the operations and of their compiled library."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob('*') if each.suffix in ('.py', '.so')):
        digest.update(path.relative_to(folder).as_posix().encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()[:8]


def path_of_choices(device: str) -> str:
    """Return the file of a device's choices, in PyTorch's cache folder (``TORCH_HOME``).

    Its name contains the versions and a hash of the operations' files, so that changed kernels are measured again.
    """
    label = f'{device} torch {torch.__version__} fcvit_mm {__version__} {_digest_of_kernels()}'
    name = ''.join(letter if letter.isalnum() else '_' for letter in label)
    return os.path.join(torch.hub.get_dir(), 'fcvit_mm', f'{name}.json')


def read_choices(device: str) -> Dict[Key, Choice]:
    """Return the stored choices of a device; none if the file is missing or unreadable."""
    try:
        with open(path_of_choices(device), encoding='utf-8') as file:
            content = json.load(file)
        return {ast.literal_eval(key): Choice(row, dict(times)) for key, (row, times) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, SyntaxError) as error:
        _warn(f'the choices in {path_of_choices(device)} cannot be read ({error}); they are measured again')
        return {}


def _keep(device: str, known: Dict[Key, Choice]) -> None:
    path = path_of_choices(device)
    merged = {**read_choices(device), **known}  # another process may have written, too
    content = {repr(key): [choice.row, choice.milliseconds] for key, choice in merged.items()}
    try:
        write_atomic(path, json.dumps(content, indent=1).encode())
    except WriteError as error:
        _warn(f'{error}. Measured choices are lost when the process ends. Set TORCH_HOME to a writable folder')


def clear_choices() -> None:
    """Discard the choices in memory; the files are kept."""
    _choices.clear()
    _seen.clear()


@lru_cache(maxsize=None)
def _log_slower(name: str, preferred: str, winner: str, device: str) -> None:
    print_log(
        f'fcvit_mm: {name} uses {winner} for some maps, because it was measured faster than {preferred} on {device}; '
        '`python -m fcvit_mm.ops --measured` lists them.',
        logger='current',
        level=logging.INFO,
    )


@lru_cache(maxsize=None)
def _warn(what: str) -> None:
    print_log(f'fcvit_mm: {what}.', logger='current', level=logging.WARNING)
