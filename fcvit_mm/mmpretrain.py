"""The project's classifiers in mmpretrain's hub: ``import fcvit_mm.mmpretrain``.

After the import, ``mmpretrain.list_models('fcvit*')`` lists those of FCViT, ``'*dwnet*'`` those of DWNet, and
``mmpretrain.get_model('fcvit_b12_in1k')`` and mmpretrain's inferencers take their names. The entries are the rows of
:data:`fcvit_mm.models.variants.VARIANTS` that have a config; those that another package registers there are added.
``pretrained=True`` loads published weights where there are some (:mod:`fcvit_mm.checkpoints.published`), and
``pretrained=PATH`` others.
"""

from pathlib import Path

from .checkpoints.published import SCHEME, published_classifier
from .dependencies import require
from .models.variants import Variant, for_each_variant

__all__ = ['index_root', 'register', 'register_classifier']


def index_root() -> Path:
    """Return the folder of ``model-index.yml`` and ``configs``.

    Returns:
        Path: ``fcvit_mm/.mim`` of an installation (a wheel's copies, an editable install's links), else the root of
        the checkout that contains the package.

    Raises:
        FileNotFoundError: Neither has a model index.
    """
    package = Path(__file__).resolve().parent
    places = (package / '.mim', package.parent)
    for place in places:
        if (place / 'model-index.yml').is_file():
            return place
    raise FileNotFoundError(
        f'no model-index.yml in {places[0]} or {places[1]}: install fcvit_mm from a wheel, or with '
        'pip install -e . in a checkout'
    )


def register() -> None:
    """Register all classifiers in mmpretrain's hub, also future ones; existing entries stay.

    Raises:
        ImportError: mmpretrain is not installed.
        FileNotFoundError: The folder of the configs is missing.
    """
    require('mmpretrain')
    for_each_variant(register_classifier)


def register_classifier(variant: Variant) -> None:
    """Register the classifier of a variant in mmpretrain's hub, unless it has no config or is already registered.

    Raises:
        FileNotFoundError: The folder of this package's configs is missing.
    """
    from mmpretrain.apis.model import ModelHub
    from modelindex.models.Model import Model

    if variant.config is None or ModelHub.has(variant.hub_name):
        return
    results = [{'Task': 'Image Classification', 'Dataset': 'ImageNet-1k', 'Metrics': variant.metrics}]
    weights = published_classifier(variant)
    entry = Model(
        name=variant.hub_name,
        metadata={'Parameters': variant.parameters, 'FLOPs': variant.flops},
        results=results if variant.published else None,
        config=str(index_root() / variant.config),
        in_collection=variant.collection,
        weights=None if weights is None else f'{SCHEME}{weights.name}',
    )
    # mmpretrain's public function only reads metafiles. These lines do what it does with an entry.
    ModelHub._models_dict[entry.name.lower()] = entry


register()
