"""The registries of this package's classes: MMEngine's root registries.

The root, and not registries of our own, because a class there is found by its bare name from the mmpretrain, mmdet
and mmseg scopes alike, and because a model's nested parts are still built in the scope that is running.
"""

from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS

__all__ = ['DATA_SAMPLERS', 'DATASETS', 'HOOKS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'TRANSFORMS']
