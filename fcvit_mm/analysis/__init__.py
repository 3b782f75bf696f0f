"""Analyses of a trained network: what it attends to, how features change with depth, which evidence a decision uses.

No other module of the package imports this one; use ``from fcvit_mm import analysis``. Each name is imported from its
module when it is first used.
"""

from importlib import import_module
from typing import Any, List

#: Public names, and the modules that define them.
_NAMES = {
    'AnalysisError': 'recording',
    'Attention': 'attention',
    'collect_attention': 'attention',
    'collect_similarity': 'attention',
    'collect_features': 'recording',
    'attention_maps': 'query_maps',
    'draw_attention': 'query_maps',
    'draw_beside': 'query_maps',
    'draw_similarity': 'similarity',
    'similarity_maps': 'similarity',
    'attention_statistics': 'statistics',
    'draw_statistics': 'statistics',
    'mean_statistics': 'statistics',
    'draw_oversmoothing': 'frequency',
    'draw_spectra': 'frequency',
    'oversmoothing': 'frequency',
    'draw_fields': 'receptive_field',
    'receptive_fields': 'receptive_field',
    'class_activation_map': 'cam',
    'draw_class_maps': 'cam',
    'write_report': 'report',
    'overlay': 'plots',
    'save_figure': 'plots',
    'write_json': 'plots',
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_NAMES[name]}', __name__), name)


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])
