"""Speed-ups for the commands that tests start: preloaded imports, less garbage collection, fewer parsed configs."""

import gc
import importlib.util
import sys
from functools import lru_cache
from itertools import product

LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
imported = 0
#: Modules that the package imports.
CORE = ('torch', 'mmengine.runner')
#: The libraries import these when the first model, metric or transform is built.
SUBPACKAGES = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization')
TIMM = ('timm',) if importlib.util.find_spec('timm') else ()
PRELOAD = (
    *('torch._dynamo', 'torch.utils.flop_counter', 'yapf.yapflib.yapf_api', 'setuptools', 'fcvit_mm', *TIMM),
    *(f'{library}.{name}' for library, name in product(LIBRARIES, SUBPACKAGES) if importlib.util.find_spec(library)),
    *('fcvit_mm.engine.run', 'fcvit_mm.preflight.checks', 'matplotlib.backends.backend_agg'),
)


def speed_up_configs():
    """Make MMEngine save configs without formatting, and find configs of libraries faster.

    yapf takes half a second to format a config, and the YAML parser a few seconds to read the index of a library, which
    does not list configs in ``_base_``.
    """
    import mmengine.config.config as config
    import mmengine.config.utils as config_utils
    import yapf.yapflib.yapf_api

    if hasattr(config_utils.load, 'cache_info'):
        return  # done already
    config_utils.load = lru_cache(None)(config_utils.load)
    find = config._get_external_cfg_path

    def find_listed(package_path, name):
        if name.startswith('_base_/'):
            raise ValueError(f'{name} is in no index')
        return find(package_path, name)

    config._get_external_cfg_path = find_listed
    yapf.yapflib.yapf_api.FormatCode = lambda text, style_config=None, **_: (text, False)


def disable_garbage_collection():
    """Disable garbage collection during imports, where it takes seconds and finds nothing."""
    gc.disable()


def freeze_imported_objects():
    """Enable garbage collection, but only for later objects: MMEngine's data sets collect often, in half a second."""
    global imported
    if len(sys.modules) > imported + 200:  # another library was imported
        if imported:
            gc.collect()
        gc.freeze()
        imported = len(sys.modules)
    gc.enable()
