"""Generated sample data sets in the layouts of ImageNet, COCO and ADE20K, and faster forms of transforms."""

from typing import Any, Callable

from ..dependencies import require
from ..registry import TRANSFORMS
from .layout import ChannelsFirst
from .shapes import CLASSES, KINDS, generate

__all__ = ['CLASSES', 'KINDS', 'ChannelsFirst', 'generate']

#: Transforms that configs name, of the module ``transforms``, which imports mmpretrain.
NAMES = ('FastRandAugment', 'FastRandomErasing', 'FastRandomFlip', 'FastRandomResizedCrop')


def _on_demand(name: str) -> Callable[..., Any]:
    """Return what builds a class of the module ``transforms``, which is imported then and not before."""

    def build(*args: Any, **kwargs: Any) -> Any:
        require('mmpretrain')
        from . import transforms

        return getattr(transforms, name)(*args, **kwargs)

    build.__name__ = name
    return build


for _name in NAMES:
    TRANSFORMS.register_module(name=_name, module=_on_demand(_name))
