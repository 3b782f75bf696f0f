"""Parts of mmdet, mmseg and mmpretrain made faster for inference: necks, heads, convolutional backbones.

A module is changed only if it and all its children are listed in :data:`KNOWN`: its convolutions compute in
channels_last, fused with the BatchNorm after them and by the operations of this package, and RoI features are extracted
by :class:`~fcvit_mm.inference.roi_align.RoIAlign`. If every component of a detector or segmentor is known, maps stay in
channels_last from the images on; otherwise a known component returns contiguous maps, because compiled operators of
mmcv read any memory as if it were contiguous, and ``view`` rejects channels_last.
"""

import copy
from typing import Any, Dict, FrozenSet, Iterator, List, Tuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.backbone import Backbone
from ..models.fusion import can_fuse, fuse_batch_norm_
from ..models.layers import Conv2d, Linear
from ..models.modified import is_unmodified
from ..ops.tracing import is_traced
from .roi_align import RoIAlign
from .winograd import WinogradConv2d


def _names(names: str) -> FrozenSet[str]:
    return frozenset(names.split())


#: Library -> classes of parts: whole models, backbones, necks and heads.
KNOWN: Dict[str, FrozenSet[str]] = {
    'mmdet': _names(
        # Detectors
        'MaskRCNN FasterRCNN CascadeRCNN RPN RetinaNet FCOS ATSS GFL RTMDet YOLOX SingleStageDetector TwoStageDetector '
        # Backbones
        'ResNet ResNetV1d ResNeXt RegNet HRNet CSPNeXt CSPDarknet '
        # Necks
        'FPN PAFPN ChannelMapper CSPNeXtPAFPN YOLOXPAFPN '
        # Heads
        'RPNHead RetinaHead FCOSHead ATSSHead GFLHead RTMDetHead RTMDetSepBNHead RTMDetInsHead '
        'RTMDetInsSepBNHead YOLOXHead StandardRoIHead CascadeRoIHead SingleRoIExtractor '
        'ConvFCBBoxHead Shared2FCBBoxHead Shared4Conv1FCBBoxHead FCNMaskHead'
    ),
    'mmseg': _names(
        'EncoderDecoder ResNet ResNetV1c ResNetV1d ResNeXt HRNet FPN UPerHead PSPHead FCNHead ASPPHead '
        'DepthwiseSeparableASPPHead SegformerHead FPNHead'
    ),
    'mmpretrain': _names('ResNet ResNetV1c ResNetV1d ResNeXt'),
}
#: Library -> classes of modules inside these parts. Every layer of PyTorch is supported.
INSIDE: Dict[str, FrozenSet[str]] = {
    'mmdet': _names(
        'BasicBlock Bottleneck ResLayer SimplifiedBasicBlock HRModule CSPLayer CSPNeXtBlock DarknetBottleneck Focus '
        'SPPBottleneck ChannelAttention Integral MaskFeatModule'
    ),
    'mmseg': _names('BasicBlock Bottleneck ResLayer HRModule PPM ASPPModule DepthwiseSeparableASPPModule Upsample'),
    'mmpretrain': _names('BasicBlock Bottleneck ResLayer'),
    'mmcv': _names(
        'ConvModule DepthwiseSeparableConvModule Scale Swish HSigmoid HSwish Conv2d ConvTranspose2d Linear MaxPool2d '
        'RoIAlign DropPath Dropout'
    ),
    'mmengine': _names('ModuleList Sequential _BatchNormXd SyncBatchNorm'),
    'torch': frozenset(),
    'fcvit_mm': _names('RoIAlign Conv2d Linear WinogradConv2d'),
}
#: Minimum number of weights of a linear layer that is replaced.
MANY_WEIGHTS = 2**16
#: Prefixes of the names of submodules that prediction does not call with feature maps.
_NOT_CALLED = ('loss', 'data_preprocessor', 'auxiliary_head')


def optimize_stock_modules_(model: nn.Module) -> int:
    """Optimize the known components of a model in evaluation mode, in place.

    Modules are replaced, not changed, so a model that shares one of them is not affected. A :class:`Backbone` is left
    unchanged.

    Args:
        model (nn.Module): Model of any library.

    Returns:
        int: Number of known components.
    """
    parts = list(_parts(model))
    for part in parts:
        for module in [part, *_called(part)]:
            if not isinstance(module, Backbone):
                _fuse(module)
        called = dict.fromkeys(_called(part))
        replaced: Dict[nn.Module, nn.Module] = {}
        for module in [part, *called]:
            if isinstance(module, Backbone):
                continue
            for name, child in module._modules.items():
                if child in called:
                    if child not in replaced:
                        replaced[child] = _faster(child)
                    module._modules[name] = replaced[child]
        backbone = getattr(part, 'backbone', None)
        if isinstance(backbone, nn.Module) and backbone in called:
            backbone.register_forward_pre_hook(in_channels_last)
        part.register_forward_hook(in_contiguous)
    return len(parts)


def in_channels_last(module: nn.Module, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Convert the images of a backbone to channels_last; a forward pre-hook."""
    if is_traced():
        return args
    return tuple(
        arg.contiguous(memory_format=torch.channels_last)
        if isinstance(arg, Tensor)
        and arg.ndim == 4
        and (not isinstance(module, Backbone) or module.prefers_channels_last(arg.device))
        else arg
        for arg in args
    )


def in_contiguous(module: nn.Module, args: Tuple[Any, ...], outputs: Any) -> Any:
    """Make the maps in a part's outputs contiguous; a forward hook."""
    if isinstance(outputs, Tensor):
        return outputs.contiguous()
    if type(outputs) in (list, tuple):
        return type(outputs)(in_contiguous(module, args, output) for output in outputs)
    return outputs


# -- supported modules -------------------------------------------------------------------------------------------------


def _is_of(module: nn.Module, *tables: Dict[str, FrozenSet[str]]) -> bool:
    """Return whether a module's class is in one of the tables and its ``forward`` was not replaced."""
    kind = type(module)
    library = kind.__module__.partition('.')[0]
    return 'forward' not in module.__dict__ and any(kind.__name__ in table.get(library, ()) for table in tables)


def _is_layout_independent(module: nn.Module) -> bool:
    """Return whether a module, and every module that it calls, computes the same in any memory layout."""
    return isinstance(module, Backbone) or (
        (type(module).__module__.partition('.')[0] == 'torch' or _is_of(module, KNOWN, INSIDE))
        and all(_is_layout_independent(child) for name, child in _children(module))
    )


def _children(module: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Yield names and submodules that a module calls with feature maps; a backbone only if it is supported."""
    for name, child in module.named_children():
        if name.startswith(_NOT_CALLED) or (name == 'backbone' and not _is_layout_independent(child)):
            continue
        yield name, child


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest known parts of a model."""
    if isinstance(module, Backbone):
        return
    if _is_of(module, KNOWN) and _is_layout_independent(module):
        yield module
        return
    for name, child in module.named_children():
        if not name.startswith(_NOT_CALLED):
            yield from _parts(child)


def _called(module: nn.Module) -> List[nn.Module]:
    """Return all modules that a supported module calls, each once, except those inside a :class:`Backbone`."""
    found: Dict[nn.Module, None] = {}

    def visit(module: nn.Module) -> None:
        for _, child in _children(module):
            if child not in found:
                found[child] = None
                if not isinstance(child, Backbone):
                    visit(child)

    visit(module)
    return list(found)


# -- replacements ------------------------------------------------------------------------------------------------------


def _fuse(module: nn.Module) -> None:
    """Fuse BatchNorms into the convolutions they directly follow."""
    for layer_name, norm_name in _pairs(module):
        layer, norm = module._modules.get(layer_name), module._modules.get(norm_name)
        if not isinstance(layer, nn.Conv2d) or not isinstance(norm, _BatchNorm) or not can_fuse(layer, norm):
            continue
        if norm.training or norm.running_mean is None or norm.running_var is None:
            continue
        layer = copy.deepcopy(layer)  # others may share it
        module._modules[norm_name] = fuse_batch_norm_(layer, norm)
        module._modules[layer_name] = layer


def _pairs(module: nn.Module) -> List[Tuple[str, str]]:
    """Return pairs of names: a layer of a module, and the norm that the module calls directly after it."""
    described: Any = module
    if type(module).__name__ == 'ConvModule':
        order = described.order
        behind = order.index('norm') == order.index('conv') + 1
        # Its own fusing, which runs at each call, reads the norm.
        if not described.with_norm or not behind or getattr(module, 'efficient_conv_bn_eval_forward', None):
            return []
        return [('conv', described.norm_name)]
    if type(module).forward is nn.Sequential.forward:
        names = list(module._modules)
        return list(zip(names, names[1:]))
    numbered = ((f'conv{number}', getattr(module, f'norm{number}_name', None)) for number in (1, 2, 3))
    return [(layer, norm) for layer, norm in numbered if norm is not None]


def _faster(module: nn.Module) -> nn.Module:
    """Return the faster replacement of a module, or the module itself if there is none."""
    if not is_unmodified(module):
        return module
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not type(module).__module__.startswith('fcvit_mm'):
        layer = copy.copy(module)
        layer._parameters = {
            name: None if parameter is None else nn.Parameter(_weight(parameter), requires_grad=False)
            for name, parameter in module._parameters.items()
        }
        if type(module) is nn.Conv2d:
            layer.__class__ = WinogradConv2d if WinogradConv2d.fits(module) else Conv2d
        return layer
    if type(module) is nn.Linear or _is_of(module, {'mmcv': frozenset({'Linear'})}):
        return _faster_linear(module)
    described: Any = module
    if type(module).__name__ == 'RoIAlign' and not isinstance(module, RoIAlign) and described.pool_mode == 'avg':
        return RoIAlign(described.output_size, described.spatial_scale, described.sampling_ratio, described.aligned)
    return module


def _faster_linear(module: Any) -> nn.Module:
    if module.weight.numel() < MANY_WEIGHTS:
        return module
    layer = copy.copy(module)
    layer._parameters = dict(module._parameters)
    layer.__class__ = Linear
    return layer


def _weight(parameter: Tensor) -> Tensor:
    return parameter.detach().contiguous(memory_format=torch.channels_last) if parameter.ndim == 4 else parameter
