"""Makes the project's classifiers known to mmpretrain: ``import fcvit_mm.mmpretrain``.

After the import, ``mmpretrain.list_models('fcvit*')`` lists those of FCViT, ``'*dwnet*'`` those of DWNet, and
``mmpretrain.get_model('fcvit_b12_in1k')`` and mmpretrain's inferencers take their names. There are no weights behind
the names: pass ``pretrained=PATH``.
"""

from pathlib import Path

from mmengine.fileio import load

from fcvit_mm.dependencies import require

__all__ = ['index_root', 'register']


def index_root() -> Path:
    """The folder of ``model-index.yml`` and ``configs``.

    Returns:
        Path: ``fcvit_mm/.mim`` of an installation (a wheel's copies, an editable install's links), else the root of
        the checkout that the package stands in.

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
    """Enter the classifiers of ``model-index.yml`` into mmpretrain's hub; what is there already stays.

    Detectors and segmentors are left out: mmpretrain could list, but not build them.

    Raises:
        ImportError: mmpretrain is not installed.
        FileNotFoundError: The model index or the classifiers' metafile is missing.
    """
    require('mmpretrain')
    from mmpretrain.apis.model import ModelHub

    root = index_root()
    for metafile in load(root / 'model-index.yml')['Import']:
        if Path(metafile).parent.name != 'classification':
            continue
        names = [model['Name'] for model in load(root / metafile)['Models']]
        if not all(ModelHub.has(name) for name in names):
            ModelHub.register_model_index(root / metafile, config_prefix=root)


register()
