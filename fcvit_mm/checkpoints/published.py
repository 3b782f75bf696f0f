"""Published weights, one row per file: authors, URL, and the config that they are for.

The rows follow the publications; the downloads have not been tested against the real servers.
:mod:`fcvit_mm.checkpoints.published_files` downloads and reads the files.
"""

import difflib
import os
from types import MappingProxyType
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional
from urllib.parse import urlparse

from ..errors import UserError
from ..models.variants import VARIANTS, Variant, find_variant
from .errors import CheckpointError

#: Prefix that marks a name of the table given in place of a file.
SCHEME = 'published:'


class PublishedWeights(NamedTuple):
    """A file of weights published by the authors of a network.

    Attributes:
        name (str): Name in this package.
        variant (str): The network, a name of :data:`~fcvit_mm.models.variants.VARIANTS`.
        task (str): ``'classifier'``, ``'detector'`` or ``'segmentor'``.
        config (str): The config it loads into: an absolute path, or relative to the folder that contains ``configs``.
        page (str): URL of the download page.
        keys (str): An example of its keys, for error messages.
        metrics (dict[str, float]): Published figures, from the authors' training, by their names in metafiles.
        address (str, optional): URL of the file; ``None`` if it must be downloaded by hand.
        confirmed (bool): Whether the publication names the file. Otherwise its name is derived from the network's.
        size (int, optional): Bytes, where published.
    """

    name: str
    variant: str
    task: str
    config: str
    page: str
    keys: str
    metrics: Mapping[str, float] = MappingProxyType({})
    address: Optional[str] = None
    confirmed: bool = True
    size: Optional[int] = None

    @property
    def file(self) -> str:
        """File name: as published, or the name to use for a download by hand."""
        return f'{self.name}.pth' if self.address is None else os.path.basename(urlparse(self.address).path)


_published: Dict[str, PublishedWeights] = {}

#: Published weights by name, including those that other packages registered.
PUBLISHED: Mapping[str, PublishedWeights] = MappingProxyType(_published)


def register_published(weights: PublishedWeights) -> PublishedWeights:
    """Add published weights, of a network in any package, to :data:`PUBLISHED`.

    Raises:
        UserError: The name is already used, or the network is not the name of a variant.
    """
    find_variant(weights.variant)
    if _published.setdefault(weights.name, weights) != weights:
        raise UserError(
            f'published weights {weights.name!r} of {_published[weights.name].variant} are already registered: '
            'register these under another name'
        )
    return weights


def find_published(name: str) -> PublishedWeights:
    """Return the row of a name, with or without ``published:``, or of the name of its config.

    Raises:
        CheckpointError: The name is unknown.
    """
    name = name[len(SCHEME) :] if is_published(name) else name
    found = PUBLISHED.get(name) or next((row for row in PUBLISHED.values() if _stem(row.config) == name), None)
    if found is None:
        near = near_published(name) or list(PUBLISHED)
        raise CheckpointError(
            f'{name!r} is not the name of published weights, expected one such as {", ".join(near[:3])}; python '
            'tools/download.py lists all'
        )
    return found


def near_published(name: str) -> List[str]:
    """Return the names of the table that a name may be a misspelling of, the nearest first."""
    return difflib.get_close_matches(name, PUBLISHED)


def is_published(checkpoint: str) -> bool:
    """Check whether a checkpoint is given as ``published:NAME``."""
    return checkpoint.startswith(SCHEME)


def with_scheme(checkpoint: str) -> str:
    """Return ``published:NAME`` for a bare name of the table, unless it is a file; otherwise the argument."""
    return f'{SCHEME}{checkpoint}' if checkpoint in PUBLISHED and not os.path.exists(checkpoint) else checkpoint


def published_classifier(variant: Variant) -> Optional[PublishedWeights]:
    """Return the published classifier of a network, if there is one."""
    rows = (row for row in PUBLISHED.values() if row.task == 'classifier' and row.variant == variant.name)
    return next(rows, None)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


DRIVE = 'https://drive.google.com/drive/folders'
RELEASE = 'https://github.com/Atten4Vis/DemystifyLocalViT/releases/download/prerelease'
HUB = 'https://huggingface.co/peihaowang/vit-anti-oversmoothing'
FCVIT_KEYS = 'network.0.0.token_mixer.gc1.fc1.weight'


def _classifier(variant: str, page: str, keys: str, address: Optional[str] = None) -> PublishedWeights:
    row = VARIANTS[variant]
    return PublishedWeights(variant, variant, 'classifier', str(row.config), page, keys, row.metrics, address)


def _fcvit_classifier(variant: str, folder: str) -> PublishedWeights:
    """Return the row of an FCViT classifier (arXiv 2212.12552); its file is in a Google Drive folder of the authors."""
    return _classifier(variant, f'{DRIVE}/{folder}', FCVIT_KEYS)


def _mask_rcnn_fcvit(arch: str, folder: str, box: str, mask: str) -> PublishedWeights:
    """Return the row of an FCViT Mask R-CNN for mmdet 2; ``box`` and ``mask`` contain AP, AP50 and AP75."""
    name = f'mask_rcnn_fcvit_{arch}'
    figures = zip(('', '50', '75'), box.split(), mask.split())
    metrics = {f'{kind} AP{at}': float(each) for at, *pair in figures for kind, each in zip(('box', 'mask'), pair)}
    config = f'configs/detection/{name}_coco.py'
    page = f'{DRIVE}/{folder}'
    return PublishedWeights(name, f'fcvit_{arch}', 'detector', config, page, f'backbone.{FCVIT_KEYS}', metrics)


def _sem_fpn_fcvit(arch: str, folder: str, miou: float) -> PublishedWeights:
    """Return the row of a Semantic FPN with FCViT for mmseg 0.x."""
    name = f'sem_fpn_fcvit_{arch}'
    config = f'configs/segmentation/{name}_ade20k.py'
    page, keys = f'{DRIVE}/{folder}', f'backbone.{FCVIT_KEYS}'
    return PublishedWeights(name, f'fcvit_{arch}', 'segmentor', config, page, keys, dict(mIoU=miou))


def _dwnet(variant: str, box: float, mask: float, miou: float) -> Iterator[PublishedWeights]:
    """Yield the rows of a network of Han et al., arXiv 2106.04263: a classifier, and files of mmdet 2 and mmseg 0.x."""
    page = 'https://github.com/Atten4Vis/DemystifyLocalViT'
    part = 'conv.conv1.weight' if variant.startswith('dynamic') else 'conv.weight'
    keys = f'layers.0.blocks.0.attn2conv.{part}'
    yield _classifier(variant, page, keys, f'{RELEASE}/{variant}_224.pth')
    for name, task, config, metrics in (
        (f'cascade_mask_rcnn_{variant}', 'detector', 'detection/{}_3x_coco', {'box AP': box, 'mask AP': mask}),
        (f'upernet_{variant}', 'segmentor', 'segmentation/{}_ade20k', {'mIoU': miou}),
    ):
        config = f'configs/{config.format(name)}.py'
        address = f'{RELEASE}/{name}.pth'
        yield PublishedWeights(name, variant, task, config, page, f'backbone.{keys}', metrics, address)


def _transformer(variant: str, file: str, confirmed: bool = False) -> PublishedWeights:
    """Return a row of Wang et al., OpenReview O476oWmiNNp; their page names one file, after the network."""
    method = 'blocks.0.attn.lamb' if variant.startswith('attnscale') else 'blocks.0.lamb1'
    return _classifier(variant, HUB, method, f'{HUB}/resolve/main/{file}')._replace(confirmed=confirmed)


for _row in (
    _fcvit_classifier('fcvit_tiny', '1YSa8tkXkUQT94mgo-L7q4pv5KiHRTAaR'),
    _fcvit_classifier('fcvit_b12', '1QuyalIGhJeD2pxcVxR0_gJNrk2mZ8WEb'),
    _fcvit_classifier('fcvit_b24', '1II2v1rhNe9sgLJtoSR-cgSh2mpPQMt4t'),
    _fcvit_classifier('fcvit_b48', '16joP1cQwbx4oICL-WbPC1SqGNoc4-NZm'),
    _mask_rcnn_fcvit('b12', '1EAz0qkbGGNqy7SgYr7E3pPCMo8YYnTVK', box='42.3 64.2 46.2', mask='38.6 61.1 41.3'),
    _mask_rcnn_fcvit('b24', '1XdZyVcC9oZqNFnUhQWRXNLwoupahMLAp', box='44.1 65.4 48.4', mask='39.9 62.4 42.7'),
    _sem_fpn_fcvit('b12', '17j_ZsGcoavAPC4OdPGXLo8ZEk0R8BZWK', miou=43.3),
    _sem_fpn_fcvit('b24', '1mzFxxMxe3XBQEibgrryuBVV7nQXDELKB', miou=45.5),
    *_dwnet('dwnet_tiny', box=49.9, mask=43.4, miou=45.5),
    *_dwnet('dwnet_base', box=51.0, mask=44.1, miou=48.3),
    *_dwnet('dynamic_dwnet_tiny', box=50.5, mask=43.7, miou=45.7),
    *_dwnet('dynamic_dwnet_base', box=51.2, mask=44.4, miou=48.0),
    _transformer('attnscale_vit_small_12', 'attnscale_small_12.pth', confirmed=True),
    _transformer('attnscale_vit_small_24', 'attnscale_small_24.pth'),
    _transformer('featscale_vit_small_12', 'featscale_small_12.pth'),
    _transformer('featscale_vit_small_24', 'featscale_small_24.pth'),
    _transformer('attnscale_cait_s24', 'attnscale_cait_S24_224.pth'),
    _transformer('featscale_cait_s24', 'featscale_cait_S24_224.pth'),
):
    register_published(_row)
