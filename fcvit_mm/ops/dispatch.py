"""Dispatch: the rule that decides which implementation of an operation runs, and the switch for users.

An operation has a reference implementation (its definition in PyTorch) and a table of faster implementations, in order
of preference. On devices that the tables were tuned for, a call runs the first implementation whose condition its
arguments meet, otherwise the reference. On other devices it runs the fastest, found by measuring (:mod:`.measured`).

``FCVIT_MM_OPS=reference`` in the environment, or ``with fcvit_mm.ops.use_ops('reference'):``, disables the tables, and
``rules`` disables measuring. ``python -m fcvit_mm.ops`` prints the tables, and what would run on this machine.
"""

import os
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, Callable, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ..deprecation import renamed_in, warn_deprecated
from ..errors import UserError
from .measured import fastest, is_untuned
from .tracing import is_traced, is_transformed

MODES = ('auto', 'rules', 'reference')
_DEPRECATED_MODES = {'plain': 'reference'}
_VARIABLE = 'FCVIT_MM_OPS'


def _check_mode(mode: str, origin: str, stacklevel: int = 3) -> str:
    if mode in _DEPRECATED_MODES:
        new = _DEPRECATED_MODES[mode]
        warn_deprecated(f'{mode!r} as {origin}', repr(new), stacklevel=stacklevel + 1)
        return new
    if mode not in MODES:
        raise UserError(
            f'{origin} is {mode!r}, expected one of {", ".join(MODES)}: "auto" runs the fastest implementation of each '
            'operation, "rules" the first of its table that applies, without measuring, "reference" '
            'the reference implementation'
        )
    return mode


# A module variable, because torch.compile can trace and guard it, but not a context variable.
_mode = _check_mode(os.environ.get(_VARIABLE, 'auto'), f'the environment variable {_VARIABLE}')


def current_mode() -> str:
    """Return the current mode of dispatch: ``auto``, ``rules`` or ``reference``."""
    return _mode


@contextmanager
def use_ops(mode: str) -> Iterator[None]:
    """Set the dispatch mode of all operations in the process while the block runs.

    Args:
        mode (str): ``auto`` for the fastest implementation: the first of the table that applies, or, on devices that
            the tables were not tuned on, what :mod:`fcvit_mm.ops.measured` finds. ``rules`` for the first that applies,
            on every device. ``reference`` for the reference implementations.

    Raises:
        ValueError: Another mode.

    Example:
        >>> import torch, fcvit_mm
        >>> with fcvit_mm.ops.use_ops('reference'):
        ...     expected = fcvit_mm.ops.channel_means(torch.rand(1, 3, 4, 4))
    """
    global _mode
    before, _mode = _mode, _check_mode(mode, 'mode', stacklevel=4)
    try:
        yield
    finally:
        _mode = before


class Implementation(NamedTuple):
    """One way to compute an operation: a row of its table.

    Attributes:
        name (str): Name in messages and benchmarks.
        function (Callable): Function of the operation's arguments.
        when (Callable): Function of the same arguments; returns whether the implementation is correct, and faster, for
            them.
        condition (str): The same as text.
        why (str): Measured gain over the rows below.
        traceable (bool): Whether ``torch.compile`` and exporters may record it.
    """

    name: str
    function: Callable[..., Any]
    when: Callable[..., bool]
    condition: str
    why: str
    traceable: bool = False


class Operation:
    """An operation: its reference, and a table of faster implementations.

    Args:
        reference (Callable): The definition. It also gives the operation its name and docstring.
        check (Callable, optional): Takes the arguments, and raises if they do not fit together.
        example (Callable, optional): Function of a floating-point tensor ``(B, C, H, W)`` of any size; returns the
            arguments of a call with it, random ones for the others; default: the tensor alone. The tests and
            ``python -m fcvit_mm.ops`` call it.

    Attributes:
        implementations (tuple[Implementation]): The table, the preferred ones first.
    """

    __name__: str

    def __init__(
        self,
        reference: Callable[..., Any],
        check: Optional[Callable[..., None]] = None,
        example: Optional[Callable[[Tensor], Tuple[Any, ...]]] = None,
    ) -> None:
        update_wrapper(self, reference)
        self.reference = reference
        self.check = check
        self.example = example or (lambda x: (x,))
        self.implementations: Tuple[Implementation, ...] = ()
        self._reference_row = Implementation(
            'reference', reference, lambda *_: True, 'otherwise', 'the definition', traceable=True
        )

    @property
    def table(self) -> Tuple[Implementation, ...]:
        """The rows of :attr:`implementations`, and the reference as the last one."""
        return (*self.implementations, self._reference_row)

    def choose(self, *args: Any) -> Implementation:
        """Return the implementation that a call with these arguments runs."""
        if _mode != 'reference' and not is_transformed():
            traced = is_traced()
            if not traced and _mode == 'auto' and is_untuned(args[0]):
                measured = fastest(self.__name__, self.table, args)
                if measured is not None:
                    return measured
            for implementation in self.implementations:
                if (implementation.traceable or not traced) and implementation.when(*args):
                    return implementation
        return self._reference_row

    def __call__(self, *args: Any) -> Any:
        # A tracer would record the comparisons of sizes as part of the network.
        if self.check is not None and not torch.jit.is_tracing():
            self.check(*args)
        return self.choose(*args).function(*args)

    def __repr__(self) -> str:
        return f'{self.__name__} ({", ".join(row.name for row in self.table)})'


def operation(
    check: Optional[Callable[..., None]] = None, example: Optional[Callable[[Tensor], Tuple[Any, ...]]] = None
) -> Callable[[Callable[..., Any]], Operation]:
    """Turn the decorated reference implementation into an :class:`Operation` with these arguments."""
    return lambda reference: Operation(reference, check, example)


__getattr__ = renamed_in(__name__)
