"""The one rule that says which form of an operation runs, and the user's switch.

An operation is a plain definition in PyTorch (the specification) with faster forms beside it. A call takes the first
form, in the order of their definition, that applies to its arguments, and else the plain definition.

``FCVIT_MM_OPS=plain`` in the environment, or ``with fcvit_mm.ops.use_ops('plain'):``, leaves out all fast forms.
"""

import os
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, Callable, Iterator, List, NamedTuple, Optional

import torch

MODES = ('auto', 'plain')
_VARIABLE = 'FCVIT_MM_OPS'


def _check_mode(mode: str, origin: str) -> str:
    if mode not in MODES:
        raise ValueError(
            f'{origin} is {mode!r}, expected one of {", ".join(MODES)}: "auto" takes the fastest form '
            'of each operation, "plain" its definition'
        )
    return mode


# A plain global, read at import: torch.compile can follow and guard it, as it cannot a context variable.
_mode = _check_mode(os.environ.get(_VARIABLE, 'auto'), f'the environment variable {_VARIABLE}')


@contextmanager
def use_ops(mode: str) -> Iterator[None]:
    """Choose the forms of all operations called inside, in the whole process.

    Args:
        mode (str): ``auto`` for the fastest form that applies, ``plain`` for the definitions.

    Raises:
        ValueError: Another mode.

    Example:
        >>> with fcvit_mm.ops.use_ops('plain'):
        ...     expected = model(images)
    """
    global _mode
    before, _mode = _mode, _check_mode(mode, 'mode')
    try:
        yield
    finally:
        _mode = before


def is_traced() -> bool:
    """Whether a compiler or an exporter is recording the operations: what it records must be standard or registered."""
    return torch.jit.is_tracing() or _is_compiling()


# torch.compiler has it since 2.3.
_is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling


def records_any_size() -> bool:
    """Whether what is recorded will be used on images of other sizes, with nothing to notice that they are others.

    A step that depends on the size must then be arithmetic of the sizes: of a branch in Python only the way that the
    example takes would be recorded. (``torch.compile`` notices, and compiles anew.)
    """
    return torch.jit.is_tracing() or is_exporting()


# torch.compiler has it since 2.7. Whether it is torch.export that records.
is_exporting = getattr(torch.compiler, 'is_exporting', None) or (lambda: False)


class Form(NamedTuple):
    """A fast form of an operation.

    Attributes:
        name (str): As it stands in messages and benchmarks.
        function (Callable): Takes the operation's arguments.
        when (Callable): Takes them too; whether the form is right, and faster, for them.
        traceable (bool): Whether ``torch.compile`` and exporters may record it.
    """

    name: str
    function: Callable[..., Any]
    when: Callable[..., bool]
    traceable: bool


class Operation:
    """An operation: a plain definition, and fast forms of it.

    Args:
        plain (Callable): The definition. It also gives the operation its name and docstring.
        check (Callable, optional): Takes the arguments, and raises if they do not fit together.
    """

    def __init__(self, plain: Callable[..., Any], check: Optional[Callable[..., None]] = None) -> None:
        update_wrapper(self, plain)
        self.plain = plain
        self.check = check
        self.forms: List[Form] = []

    def fast(self, name: str, when: Callable[..., bool], traceable: bool = False) -> Callable:
        """Decorate a fast form; earlier ones are preferred."""

        def register(function: Callable) -> Callable:
            self.forms.append(Form(name, function, when, traceable))
            return function

        return register

    def choose(self, *args) -> Callable[..., Any]:
        """The function that a call with these arguments runs."""
        if _mode == 'plain':
            return self.plain
        traced = is_traced()
        for form in self.forms:
            if (form.traceable or not traced) and form.when(*args):
                return form.function
        return self.plain

    def __call__(self, *args):
        # A tracer would take the comparisons of sizes for part of the network.
        if self.check is not None and not torch.jit.is_tracing():
            self.check(*args)
        return self.choose(*args)(*args)

    def __repr__(self) -> str:
        return f'{self.__name__} ({", ".join(["plain"] + [form.name for form in self.forms])})'


def operation(check: Optional[Callable[..., None]] = None) -> Callable[[Callable], Operation]:
    """Make the decorated plain definition an :class:`Operation`."""
    return lambda plain: Operation(plain, check)
