"""Layer-wise learning-rate decay for classifiers, detectors and segmentors alike."""

from typing import Any, List, Optional

import torch.nn as nn
from mmengine.optim import DefaultOptimWrapperConstructor

from ...errors import UserError
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS


def layer_scale(layer: int, num_layers: int, rate: float) -> float:
    """Return the learning-rate factor of a layer: 1 for the last layer, times ``rate`` for each layer before."""
    return rate ** (num_layers - 1 - layer)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with learning rates that decay from the output of the backbone to its stem.

    Source of the scheme: Clark et al., "ELECTRA", arXiv 2003.10555; Bao et al., "BEiT", arXiv 2106.08254.

    The libraries' own constructors accept only backbones that they know by name (mmdet, mmseg) or models that have
    ``get_layer_depth`` themselves (mmpretrain). This one calls ``model.backbone.get_layer_depth``; neck and heads use
    the full rate. All other options of ``paramwise_cfg`` work as before; a learning rate that they set (for example
    ``custom_keys`` with ``lr_mult``) is multiplied by the layer's factor.

    Args:
        optim_wrapper_cfg (dict): Config of the optimizer wrapper, as in MMEngine.
        paramwise_cfg (dict): Settings by parameter, as in MMEngine, with ``layer_decay_rate`` (float in ``(0, 1]``).

    Raises:
        UserError: ``layer_decay_rate`` is missing or out of range, the optimizer has no ``lr``, or the model has no
            backbone that knows the depth of its layers.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='BackboneLayerDecayConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.9, norm_decay_mult=0.))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        # It is not removed from paramwise_cfg, because MMEngine ignores parameter-wise options if that is empty.
        rate = paramwise_cfg.get('layer_decay_rate')
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise UserError(f'paramwise_cfg has layer_decay_rate={rate!r}, expected a number above 0 and at most 1')
        self.layer_decay_rate = rate
        self.base_lr: Any
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise UserError(
                'optim_wrapper.optimizer has no lr, expected the learning rate that layer-wise decay scales: set it'
            )

    def add_params(self, params: List[dict], module: nn.Module, prefix: str = '', is_dcn_module: Any = None) -> None:
        """Add the groups of all parameters of ``module``; at the top, scale their learning rates by depth."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        backbone: Any = getattr(module, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise UserError(
                f'{type(self).__name__} needs model.backbone.get_layer_depth(name, prefix), which '
                f'{type(backbone).__name__} (backbone of {type(module).__name__}) lacks: use a backbone of fcvit_mm, '
                'or remove constructor and layer_decay_rate from optim_wrapper'
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            layer, num_layers = backbone.get_layer_depth(names[id(group['params'][0])], 'backbone.')
            group['lr'] = group.get('lr', self.base_lr) * layer_scale(layer, num_layers, self.layer_decay_rate)
