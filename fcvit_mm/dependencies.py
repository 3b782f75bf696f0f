"""Required packages, and the commands that install them."""

import importlib.util

from .errors import UserError

#: Packages of each task: import name and the extra of this package that brings it.
EXTRAS = {'mmpretrain': 'cls', 'mmdet': 'det', 'mmseg': 'seg', 'timm': 'timm'}
MIN_TORCH = (2, 0)


class MissingPackageError(UserError, ImportError):
    """A package is not installed, or is too old."""


def require(package: str) -> None:
    """Raise an error with the install command if ``package`` is missing.

    Args:
        package (str): An import name of ``EXTRAS``, or ``'mmengine'``.

    Raises:
        MissingPackageError: ``package`` is not installed.
    """
    if importlib.util.find_spec(package) is None:
        extra = EXTRAS.get(package, 'cls')
        raise MissingPackageError(
            f"{package} is not installed. In a new environment: pip install --no-build-isolation 'fcvit_mm[{extra}]' "
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
            f'fcvit_mm needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer, found {torch.__version__}'
        )
