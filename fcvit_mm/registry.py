"""The registries of this package's classes: MMEngine's root registries.

Root registries are used, not registries of this package, because the mmpretrain, mmdet and mmseg scopes all find their
classes by the bare name, and because the nested parts of a model are still built in the scope that is running.
"""

from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS

__all__ = ['DATA_SAMPLERS', 'DATASETS', 'HOOKS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'TRANSFORMS']
