"""Generated sample data sets: images of shapes in the layouts of ImageNet, COCO and ADE20K."""

from .shapes import CLASSES, KINDS, generate

__all__ = ['CLASSES', 'KINDS', 'generate']
