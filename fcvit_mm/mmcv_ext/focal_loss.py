"""Focal losses of sigmoid and softmax."""

from typing import Tuple

import torch
from torch import Tensor

from .support import TINY, recompute


def _sigmoid_focal(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    chance = input.sigmoid()
    hit = target[:, None] == torch.arange(input.shape[1], device=input.device)
    positive = -alpha * (1 - chance) ** gamma * chance.clamp(min=TINY).log()
    negative = -(1 - alpha) * chance**gamma * (1 - chance).clamp(min=TINY).log()
    loss = torch.where(hit, positive, negative)
    return loss * weight[target][:, None] if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of logits ``(N, K)`` and classes ``(N,)`` into ``output`` ``(N, K)``."""
    output.copy_(_sigmoid_focal(input.float(), target, weight.float(), gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss with respect to its own logit into ``grad_input`` ``(N, K)``."""
    (gradient,) = recompute(
        lambda x: _sigmoid_focal(x, target, weight.float(), gamma, alpha),
        [input.float()],
        torch.ones_like(input, dtype=torch.float32),
    )
    grad_input.copy_(gradient)


def _of_class(softmax: Tensor, target: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the probability of each row's class, and its weight, which is 0 for a negative class."""
    known = target >= 0
    classes = target.clamp(min=0)
    factor = known.float() * (weight.float()[classes] if weight.numel() else 1.0)
    return softmax.float().gather(1, classes[:, None])[:, 0], factor


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of softmax probabilities ``(N, K)`` and classes ``(N,)`` into ``output`` ``(N,)``."""
    chance, factor = _of_class(input, target, weight)
    output.copy_(-alpha * (1 - chance) ** gamma * chance.clamp(min=TINY).log() * factor)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each row's loss with respect to the logits into ``grad_input`` ``(N, K)``."""
    chance, factor = _of_class(input, target, weight)
    slope = -((1 - chance) ** gamma) + gamma * (1 - chance) ** (gamma - 1) * chance * chance.clamp(min=TINY).log()
    buff.copy_(alpha * slope * factor)
    hit = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_(buff[:, None] * (hit.to(input.dtype) - input))
