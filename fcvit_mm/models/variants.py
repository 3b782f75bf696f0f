"""Table of all variants of the networks, one row each; other packages add theirs with :func:`register_variant`.

All code that lists networks reads these rows: timm's names, mmpretrain's hub, model cards, the benchmark, the tables of
the documentation (``dev/fill_tables.py``) and the tests. A row describes the ImageNet classifier; detectors and
segmentors take the same network with other outputs.
"""

from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Type, Union

from ..errors import UserError
from .backbone import Backbone
from .cait import CaiT
from .dwnet import DWNet
from .fcvit import FCViT
from .swin import Swin
from .vit import ViT

#: Keys of :attr:`Variant.published`, and their names in metafiles.
METRICS = {'top1': 'Top 1 Accuracy'}


class Variant(NamedTuple):
    """A variant of a network, described by its ImageNet classifier.

    Attributes:
        name (str): Name in timm, such as ``'fcvit_b12'``. ``hub_name`` is the name in mmpretrain's hub and of the
            config.
        network (type): The backbone's class.
        options (dict): Arguments of ``network`` that make it the classifier's backbone, with one output, the last.
        crop (float): Side of the evaluation crop as a fraction of the resized image's short side.
        paper (str): The paper's identifier with its site in front, such as ``'arXiv:2212.12552'``.
        collection (str): The collection of ``metafile.yml``; detection and segmentation append the task.
        parameters (int, optional): Measured: parameters of the classifier with 1000 classes.
        flops (int, optional): Measured with ``tools/get_flops.py``: its multiply-adds for an image of 224x224.
        published (dict[str, float]): Figures of the authors in ``paper``, not from this project's training: ``'top1'``,
            the top-1 accuracy on the validation images of ImageNet-1k in percent.
        class_token (bool): Whether the head reads a class token (ViT, CaiT) instead of the mean of the last map.
        first_conv (str): Name in ``network`` of its first convolution, which timm adapts to images of other channels.
        config (str, optional): Path of the classifier's config, absolute or relative to the folder that contains
            ``configs``. ``None``: no config, and no entry in mmpretrain's hub.
        dense (dict): Arguments of ``network`` in detectors and segmentors that differ from ``options``; they set
            ``out_indices`` themselves.
    """

    name: str
    network: Type[Backbone]
    options: Mapping[str, Any]
    crop: float
    paper: str
    collection: str
    parameters: Optional[int] = None
    flops: Optional[int] = None
    published: Mapping[str, float] = MappingProxyType({})
    class_token: bool = False
    first_conv: str = 'stem.proj'
    config: Optional[str] = None
    dense: Mapping[str, Any] = MappingProxyType({})

    @property
    def hub_name(self) -> str:
        """The name of the classifier's config and in mmpretrain's hub."""
        return f'{self.name}_in1k'

    @property
    def metrics(self) -> Dict[str, float]:
        """The published figures under the names that metafiles have for them."""
        return {METRICS[key]: value for key, value in self.published.items()}

    def build(self, **options: Any) -> Backbone:
        """Build the backbone.

        Args:
            **options: Arguments of ``network``, in addition to those of the row or in their place.
        """
        return self.network(**{**self.options, **options})


_variants: Dict[str, Variant] = {}
_listeners: List[Callable[[Variant], object]] = []

#: Every variant by its name, including those that other packages registered.
VARIANTS: Mapping[str, Variant] = MappingProxyType(_variants)


def register_variant(variant: Variant) -> Variant:
    """Add a variant of a network in any package; it is then listed wherever this package's own variants are.

    It may be called before or after ``import fcvit_mm.timm`` and ``import fcvit_mm.mmpretrain``.

    Raises:
        UserError: Another variant has this name.
    """
    known = _variants.get(variant.name)
    if known is not None and known != variant:
        raise UserError(
            f'the variant name {variant.name!r} of {variant.network.__name__} is already used by '
            f'{known.network.__name__}: register it under another name'
        )
    if known is None:
        _variants[variant.name] = variant
        for listener in _listeners:
            listener(variant)
    return variant


def for_each_variant(function: Callable[[Variant], object]) -> None:
    """Call a function with every variant, and with each that is registered later."""
    for variant in tuple(_variants.values()):
        function(variant)
    _listeners.append(function)


def find_variant(name: str) -> Variant:
    """Return the variant of a name, with or without ``_in1k``.

    Raises:
        UserError: There is none.
    """
    found = _variants.get(name) or _variants.get(name[: -len('_in1k')] if name.endswith('_in1k') else name)
    if found is None:
        raise UserError(f'unknown network {name!r}, expected one of {", ".join(_variants)}')
    return found


def variants_of(network: type) -> List[Variant]:
    """Return the variants of a network's class."""
    return [variant for variant in _variants.values() if variant.network is network]


def collection_of(network: type) -> Optional[str]:
    """Return the collection that a network's variants belong to; ``None`` if it has none."""
    return next((variant.collection for variant in variants_of(network)), None)


def _fcvit(arch: str, crop: float, parameters: int, flops: int, **published: float) -> Variant:
    """Return a row; published figures of Ma et al., "A Close Look at Spatial Modeling"."""
    options = dict(arch=arch, out_indices=(3,), layer_scale_init_value=1e-5)
    row = Variant(f'fcvit_{arch}', FCViT, options, crop, 'arXiv:2212.12552', 'FCViT', parameters, flops, published)
    return row._replace(config=_config(row), dense=dict(layer_scale_init_value=1e-6))


def _dwnet(name: str, arch: str, dynamic: Union[bool, str], parameters: int, flops: int, **published: float) -> Variant:
    """Return a row; published figures of Han et al., "On the Connection between Local Attention and Dynamic Depth-wise
    Convolution". Nothing is published for the inhomogeneous ones on ImageNet."""
    options = dict(arch=arch, dynamic=dynamic, out_indices=(3,), norm_cfg=dict(type='LN'))
    row = Variant(name, DWNet, options, 224 / 256, 'arXiv:2106.04263', 'DWNet', parameters, flops, published)
    return row._replace(config=_config(row), dense=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)))


def _transformer(name: str, network: Type[Backbone], arch: str, parameters: int, flops: Optional[int]) -> Variant:
    """Return a row; the figures of Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain
    Analysis", are not repeated here."""
    method = 'attn_scale' if name.startswith('attnscale') else 'feat_scale'
    class_token = network is not Swin
    output: Dict[str, Any] = dict(out_type='cls_token') if class_token else dict(out_indices=(3,))
    row = Variant(
        name,
        network,
        dict(arch=arch, methods=(method,), **output),
        224 / 256,
        'OpenReview:O476oWmiNNp',
        'AttnScale and FeatScale',
        parameters,
        flops,
        class_token=class_token,
        dense=dict(out_type='pyramid') if class_token else {},
    )
    return row._replace(config=_config(row))


def _config(variant: Variant) -> str:
    return f'configs/classification/{variant.hub_name}.py'


for _variant in (
    _fcvit('tiny', 0.9, 4_784_752, 901_541_376, top1=74.9),
    _fcvit('b12', 0.9, 14_701_832, 2_645_471_232, top1=80.9),
    _fcvit('b24', 0.95, 26_960_232, 5_058_617_344, top1=82.5),
    _fcvit('b48', 0.95, 51_477_032, 9_884_909_568, top1=83.6),
    _dwnet('dwnet_tiny', 'tiny', False, 24_172_744, 3_726_862_848, top1=81.2),
    _dwnet('dwnet_base', 'base', False, 74_347_112, 12_812_261_376, top1=83.2),
    _dwnet('dynamic_dwnet_tiny', 'tiny', 'homogeneous', 51_131_752, 3_753_819_648, top1=81.8),
    _dwnet('dynamic_dwnet_base', 'base', 'homogeneous', 161_597_928, 12_899_506_176, top1=83.2),
    _dwnet('inhomogeneous_dwnet_tiny', 'tiny', 'inhomogeneous', 26_244_280, 4_374_128_464),
    _dwnet('inhomogeneous_dwnet_base', 'base', 'inhomogeneous', 80_253_608, 14_340_018_536),
    _transformer('attnscale_vit_small_12', ViT, 'small_12', 22_050_736, 4_598_882_304),
    _transformer('attnscale_vit_small_24', ViT, 'small_24', 43_344_376, 9_139_577_856),
    _transformer('attnscale_vit_base_12', ViT, 'base_12', 86_567_800, 17_563_828_224),
    _transformer('attnscale_vit_base_24', ViT, 'base_24', 171_622_408, 35_011_282_944),
    _transformer('attnscale_cait_xxs24', CaiT, 'xxs24', 11_956_360, None)._replace(config=None),
    _transformer('attnscale_cait_s24', CaiT, 's24', 46_916_392, 9_327_327_744),
    _transformer('attnscale_swin_small', Swin, 'small', 49_606_540, 8_740_875_264),
    _transformer('featscale_vit_small_12', ViT, 'small_12', 22_059_880, 4_598_882_304),
    _transformer('featscale_vit_small_24', ViT, 'small_24', 43_362_664, 9_139_577_856),
    _transformer('featscale_vit_base_12', ViT, 'base_12', 86_586_088, 17_563_828_224),
    _transformer('featscale_vit_base_24', ViT, 'base_24', 171_658_984, 35_011_282_944),
    _transformer('featscale_cait_xxs24', CaiT, 'xxs24', 11_965_480, None)._replace(config=None),
    _transformer('featscale_cait_s24', CaiT, 's24', 46_934_632, 9_327_327_744),
    _transformer('featscale_swin_small', Swin, 'small', 49_624_306, 8_740_875_264),
):
    register_variant(_variant)
