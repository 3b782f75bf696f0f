"""Detection of modified modules (hooks, parametrizations, replaced ``forward``), which must be called and not fused."""

import torch.nn as nn
import torch.nn.modules.module as nn_module

from ..ops.tracing import hides_attributes


def is_unmodified(module: nn.Module) -> bool:
    """Check that a module is unmodified: no hooks, no ``forward`` set on the instance, no parametrization.

    Pruning, feature extraction, old ``weight_norm``, offloading (accelerate) and ``parametrize`` (spectral norm, LoRA)
    use one of these.
    """
    if hides_attributes():
        return False  # unknown; counting as modified is always correct, because the module is then called
    own = module.__dict__
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or 'forward' in own
        or 'parametrizations' in module._modules
    )


def has_global_hooks() -> bool:
    """Check whether hooks are registered for all modules, as counters and profilers do."""
    return bool(
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )
