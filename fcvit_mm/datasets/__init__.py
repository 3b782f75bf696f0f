"""Generated sample data sets in the layouts of ImageNet, COCO and ADE20K, and faster training transforms."""

import importlib
from typing import Any, Callable

from ..dependencies import require
from ..registry import TRANSFORMS
from .layout import ChannelsFirst
from .shapes import CLASSES, KINDS, generate

__all__ = ['CLASSES', 'KINDS', 'ChannelsFirst', 'generate']

#: Transforms by name: the module that defines them, and the library that the module imports.
NAMES = {
    'FastDetRandomFlip': ('detection_transforms', 'mmdet'),
    'FastPhotoMetricDistortion': ('segmentation_transforms', 'mmseg'),
    'FastRandAugment': ('transforms', 'mmpretrain'),
    'FastRandomErasing': ('transforms', 'mmpretrain'),
    'FastRandomFlip': ('transforms', 'mmpretrain'),
    'FastRandomResizedCrop': ('transforms', 'mmpretrain'),
    'FastSegRandomCrop': ('segmentation_transforms', 'mmseg'),
}


def _on_demand(name: str) -> Callable[..., Any]:
    """Return a builder of a class of :data:`NAMES` that imports the module only when it is called."""
    module, package = NAMES[name]

    def build(*args: Any, **kwargs: Any) -> Any:
        require(package)
        return getattr(importlib.import_module(f'.{module}', __name__), name)(*args, **kwargs)

    build.__name__ = name
    return build


for _name in NAMES:
    TRANSFORMS.register_module(name=_name, module=_on_demand(_name))
