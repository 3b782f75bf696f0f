"""Required packages, the commands that install them, and a workaround for some versions of transformers."""

import importlib
import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Optional, Sequence

from .errors import UserError

#: Packages of each task: import name and the extra of this package that brings it.
EXTRAS = {'mmpretrain': 'cls', 'mmdet': 'det', 'mmseg': 'seg', 'timm': 'timm'}
MIN_TORCH = (2, 0)


class MissingPackageError(UserError, ImportError):
    """A package is not installed, or is too old."""


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of this package, which is not on PyPI, as text for messages."""
    return f"in the project folder, pip install --no-build-isolation -e '.[{extra}]'"


def require(package: str) -> None:
    """Raise an error with the install command if ``package`` is missing.

    Args:
        package (str): An import name of ``EXTRAS``, or ``'mmengine'``.

    Raises:
        MissingPackageError: ``package`` is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(
            f'{package} is not installed. In a new environment: {how_to_install(EXTRAS.get(package, "cls"))} '
            f'(after torch). In an environment with the original OpenMMLab packages: mim install {package}'
        )


def check_core() -> None:
    """Check the packages that every part of this package needs: MMEngine and a recent torch.

    Raises:
        MissingPackageError: MMEngine is missing or torch is too old.
    """
    require('mmengine')
    import torch

    version = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if version < MIN_TORCH:
        raise MissingPackageError(
            f'fcvit_mm needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {torch.__version__}: upgrade it'
        )


class MultimodalGuard(importlib.abc.MetaPathFinder):
    """Import hook that disables mmpretrain's multimodal models if transformers lacks a function that they import.

    transformers 5 removed it. Without this guard ``import mmpretrain.models`` fails with ``TypeError: NoneType takes no
    arguments``, and so does ``import mmdet.models``, which imports mmpretrain if it is installed. With it mmpretrain
    registers its placeholders, as without transformers. It finds no module itself.
    """

    #: Packages of mmpretrain that ask whether there are multimodal models.
    ASKING = ('mmpretrain.models', 'mmpretrain.datasets')

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> None:
        if fullname in self.ASKING and not supports_multimodal():
            vars(importlib.import_module('mmpretrain.utils.dependency'))['WITH_MULTIMODAL'] = False


def supports_multimodal() -> bool:
    """Return whether the installed transformers has the function. Without transformers, mmpretrain decides: True."""
    if importlib.util.find_spec('transformers') is None:
        return True
    try:
        module = importlib.import_module('transformers.pytorch_utils')
    except ImportError:
        return False
    return hasattr(module, 'find_pruneable_heads_and_indices')


def guard_multimodal() -> None:
    """Let ``import mmpretrain`` work in this process beside any version of transformers."""
    if not any(isinstance(finder, MultimodalGuard) for finder in sys.meta_path):
        sys.meta_path.insert(0, MultimodalGuard())
