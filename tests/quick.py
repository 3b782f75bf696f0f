"""What takes the tests' commands longest and answers no question, done beforehand or not at all."""

import gc
import importlib.util
from functools import lru_cache
from itertools import product

#: What the package itself imports.
CORE = ('torch', 'mmengine.runner')
#: The libraries import these when the first model, metric or transform is built.
ROOMS = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization')
PRELOAD = (
    *('torch._dynamo', 'yapf.yapflib.yapf_api', 'fcvit_mm'),
    *(
        f'{package}.{room}'
        for package, room in product(('mmpretrain', 'mmdet', 'mmseg'), ROOMS)
        if importlib.util.find_spec(package)
    ),
)


def hurry_configs():
    """Let MMEngine log and save a config's text as it is, and read the indices of the libraries' configs once.

    yapf takes half a second to lay out a text, and the parser of YAML a second to find a config of the libraries.
    """
    import mmengine.config.utils as config_utils
    import yapf.yapflib.yapf_api

    if not hasattr(config_utils.load, 'cache_info'):
        config_utils.load = lru_cache(None)(config_utils.load)
    yapf.yapflib.yapf_api.FormatCode = lambda text, style_config=None, **_: (text, False)


def collect_no_garbage():
    """Leave the garbage where it is while much is imported: collecting takes seconds of that and finds nothing."""
    gc.disable()


def pass_over_what_is_imported():
    """Collect garbage again, but among later objects: MMEngine's data sets do so, half a second each time."""
    gc.freeze()
    gc.enable()
