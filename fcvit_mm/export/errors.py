"""Errors of exporters and runtimes, converted to messages that name the operator."""

import os
import os.path as osp
import re
import traceback
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

import torch

from ..errors import UserError
from ..files import is_write_failure

#: Patterns of messages in which exporters and runtimes name an operator.
OPERATORS = (
    r"op='([\w.:]+)'",
    r"Python function call '(\w+)'",
    r'running (\w+) node',
    r'\b((?:aten|prims|torchvision|mmcv|fcvit_mm)(?:::|\.)\w+)',
)


class ExportError(UserError):
    """A format does not support a model or one of its operators."""


@contextmanager
def naming_operators(what: str) -> Iterator[None]:
    """Convert errors of exporters and runtimes to one message with the operator, its call and the solution."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_write_failure(error):
            raise
        # Broad, because there is no class that all of their errors have in common.
        operator, cause = operator_of(error)
        place = place_of(error)
        line = next((line.strip() for line in str(cause).splitlines() if line.strip()), '')
        raise ExportError(
            f'{what}: '
            + (f'the operator {operator} cannot be exported' if operator else 'the error names no operator')
            + (f', called in {place}' if place else '')
            + f' ({type(cause).__name__}: {line[:300]}). Replace this layer by standard operations, export the part '
            'before it (--part backbone), or try another --format'
        ) from error


def causes(error: BaseException) -> List[BaseException]:
    """Return an error and the errors that caused it, the earliest first."""
    found: List[BaseException] = []
    current: Optional[BaseException] = error
    while current is not None and current not in found:
        found.insert(0, current)
        current = current.__cause__ or current.__context__
    return found


def operator_of(error: BaseException) -> Tuple[Optional[str], BaseException]:
    """Return the operator that an error or a cause of it names, if any does, and that error."""
    for pattern in OPERATORS:
        for cause in causes(error):
            found = re.search(pattern, str(cause))
            if found:
                return found[1], cause
    return None, error


def place_of(error: BaseException) -> Optional[str]:
    """Return the innermost line of a model's own code, not PyTorch's, that an error came through."""
    inside = osp.dirname(torch.__file__)
    for cause in causes(error):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if not frame.filename.startswith(inside) and frame.name == 'forward':
                return f'{"/".join(frame.filename.split(os.sep)[-3:])}, line {frame.lineno}'
    return None
