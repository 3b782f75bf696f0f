"""The error of an operator that is missing."""

from ..errors import UserError


class MMCVOperatorError(UserError, NotImplementedError):
    """An operator of mmcv that only its compiled build has.

    Args:
        name (str): The operator, or the part of it, as mmcv calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f'the operator {name} of mmcv is not available: this mmcv was installed without its compiled operators, '
            'and torchvision has none in its place. With a C++ compiler (and nvcc for a GPU), MMCV=compiled make setup '
            'builds it; in an environment of your own: pip install --no-build-isolation --no-cache-dir '
            '--force-reinstall --no-deps onedl-mmcv'
        )
