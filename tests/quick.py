"""What takes the tests' commands longest and answers no question, done beforehand or not at all."""

import gc
import importlib.util
import sys
from functools import lru_cache
from itertools import product

LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')
imported = 0
#: What the package itself imports.
CORE = ('torch', 'mmengine.runner')
#: The libraries import these when the first model, metric or transform is built.
ROOMS = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization')
TIMM = ('timm',) if importlib.util.find_spec('timm') else ()
PRELOAD = (
    *('torch._dynamo', 'torch.utils.flop_counter', 'yapf.yapflib.yapf_api', 'setuptools', 'fcvit_mm', *TIMM),
    *(f'{package}.{room}' for package, room in product(LIBRARIES, ROOMS) if importlib.util.find_spec(package)),
    *('fcvit_mm.engine.run', 'fcvit_mm.preflight.checks', 'matplotlib.backends.backend_agg'),
)


def hurry_configs():
    """Let MMEngine log and save a config's text as it is, and look for the libraries' configs in little time.

    yapf takes half a second to lay out a text, the parser of YAML a few to read a library's index, which lists no
    config of ``_base_``.
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


def collect_no_garbage():
    """Leave the garbage where it is while much is imported: collecting takes seconds of that and finds nothing."""
    gc.disable()


def pass_over_what_is_imported():
    """Collect garbage again, but among later objects: MMEngine's data sets do so, half a second each time."""
    global imported
    if len(sys.modules) > imported + 200:  # a library, once more
        if imported:
            gc.collect()
        gc.freeze()
        imported = len(sys.modules)
    gc.enable()
