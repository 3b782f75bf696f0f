"""Batch norm over the batches of all processes."""

from typing import Optional

from torch import Tensor


def _of_channels(values: Tensor) -> Tensor:
    return values[:, None]


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of each channel of ``(B, C, L)`` into ``mean`` ``(C,)``."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared distance of each channel of ``(B, C, L)`` from ``mean`` ``(C,)`` into ``var`` ``(C,)``."""
    var.copy_((input.float() - _of_channels(mean)).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Normalize (arXiv 1502.03167) ``(B, C, L)`` by statistics ``(C,)`` of all processes.

    Args:
        input (Tensor): ``(B, C, L)``.
        mean, var (Tensor): Biased statistics of each channel.
        weight, bias (Tensor, optional): ``(C,)``.
        running_mean, running_var (Tensor, optional): ``(C,)``; updated in place, the variance unbiased.
        norm, std, output (Tensor): Tensors that get the normalized map, the standard deviations and the result.
        eps (float): Number added to the variance.
        momentum (float): Weight of the new statistics in the running ones, as in PyTorch.
        group_size (int): Number of processes, each with a batch like this one.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - _of_channels(mean)) / _of_channels(std))
    result = norm if weight is None else norm * _of_channels(weight)
    output.copy_(result if bias is None else result + _of_channels(bias))
    if running_mean is not None and running_var is not None:
        count = input.shape[0] * input.shape[2] * group_size
        running_mean.lerp_(mean.to(running_mean), float(momentum))
        running_var.lerp_((var * count / (count - 1) if count > 1 else var).to(running_var), float(momentum))


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of :func:`sync_bn_forward_output` for weight and bias, of this process's batch."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input of :func:`sync_bn_forward_output`.

    ``grad_weight`` and ``grad_bias`` are the averages over all processes.
    """
    count = grad_output.shape[0] * grad_output.shape[2]
    shared = (_of_channels(grad_weight) * norm + _of_channels(grad_bias)) / count
    grad_input.copy_(_of_channels(weight / std) * (grad_output.float() - shared))
