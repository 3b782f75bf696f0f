"""Letting mmcv find the operators: in this process, or in the environment."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Optional, Sequence

from ..errors import UserError
from ..files import write_atomic

NAME = 'mmcv._ext'
OPERATORS = 'fcvit_mm.mmcv_ext.operators'


def is_compiled() -> bool:
    """Return whether the installed mmcv has its compiled operators.

    Raises:
        UserError: mmcv is not installed.
    """
    folder = mmcv_folder()
    return any((folder / f'_ext{suffix}').is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES)


def mmcv_folder() -> Path:
    """Return the folder of the installed mmcv.

    Raises:
        UserError: mmcv is not installed.
    """
    spec = importlib.util.find_spec('mmcv')
    if spec is None or not spec.submodule_search_locations:
        raise UserError('mmcv is not installed: pip install onedl-mmcv')
    return Path(list(spec.submodule_search_locations)[0])


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that finds ``mmcv._ext`` in this package, but only if mmcv has none."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == NAME else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Return ``None``: Python creates a module, which :meth:`exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[NAME] = importlib.import_module(OPERATORS)


def register_finder() -> None:
    """Let this process find this package's operators, if mmcv has none."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


INSTALLED = (
    '"""Written by `python -m fcvit_mm.mmcv_ext install`: operators from torchvision. A compiled build of mmcv '
    'comes before."""\nimport sys\n\nfrom fcvit_mm.mmcv_ext import operators\n\nsys.modules[__name__] = operators\n'
)


def install() -> str:
    """Write ``mmcv/_ext.py``, so that the operators are found in any order of imports.

    Returns:
        str: Description of what was done.

    Raises:
        UserError: mmcv is not installed.
        WriteError: The folder of mmcv is not writable.
    """
    folder = mmcv_folder()
    if is_compiled():
        return f'{folder} has its compiled operators: left as it is'
    write_atomic(folder / '_ext.py', INSTALLED.encode())
    return f'{folder / "_ext.py"}: operators from torchvision'
