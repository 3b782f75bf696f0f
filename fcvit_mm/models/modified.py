"""The one rule for what counts as modified: such modules are called, and never computed from their weights or fused."""

import torch.nn as nn
import torch.nn.modules.module as nn_module

from ..ops.tracing import hides_attributes


def is_unmodified(module: nn.Module) -> bool:
    """Check that a module is unmodified: no hooks, no ``forward`` of its own, no parametrization.

    Pruning, feature extraction, old ``weight_norm``, offloading (accelerate) and ``parametrize`` (spectral norm, LoRA)
    use one of these.
    """
    if hides_attributes():
        return False  # unknown; a module that counts as modified is called, which is always correct
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
