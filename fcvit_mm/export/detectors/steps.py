"""Steps of postprocessing, as arithmetic on tensors of dynamic length."""

from typing import Any, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def smaller(limit: int, size: Any) -> Any:
    """Return the smaller of a constant and a size, which may be a symbol of torch.export or a tensor of a trace."""
    if isinstance(size, torch.SymInt):
        return torch.sym_min(size, limit)
    if isinstance(size, Tensor):
        return size.clamp(max=limit)
    return min(limit, size)


def flatten_priors(x: Tensor, width: int) -> Tensor:
    """Turn an image's map ``(1, A * width, H, W)`` into one row for each prior, ``(H * W * A, width)``."""
    return x[0].permute(1, 2, 0).reshape(-1, width)


def clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Clip boxes ``(..., 4 * C)`` to an image."""
    x, y = boxes[..., 0::2].clamp(min=0, max=width), boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), -1).flatten(-2)


def topk(values: Tensor, limit: int, stable: bool) -> Tuple[Tensor, Tensor]:
    """Return the top ``limit`` of values ``(N,)`` and their indices, in descending order; ties are broken by index.

    Ties are common: after a ReLU scores are 0.5, and padded or black areas have constant scores.

    Args:
        values (Tensor): Values; at least one.
        limit (int): Number of values to return.
        stable (bool): Whether ``topk`` breaks ties by order. ONNX defines this, PyTorch breaks ties arbitrarily.
    """
    found, index = values.topk(smaller(limit, values.shape[0]))
    if not stable:
        index = (values >= found[-1]).nonzero()[:, 0]
        found, order = values[index].sort(descending=True, stable=True)
        found, index = found[:limit], index[order[:limit]]
    return found, index


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any, limit: int) -> Tensor:
    """Apply non-maximum suppression within groups; return at most ``limit`` indices, best first.

    Groups are shifted apart as mmcv's ``batched_nms`` shifts them, so that rounding is the same.

    Args:
        boxes (Tensor): Left, top, right, bottom in pixels, ``(N, 4)``.
        scores (Tensor): ``(N,)``.
        groups (Tensor): Number of the group of each box, ``(N,)``.
        cfg (dict): ``nms`` of a test_cfg.
        limit (int): Largest number of boxes that are kept.
    """
    import torchvision

    if not cfg.get('class_agnostic', False):
        # With a 0 appended, because max() fails without boxes.
        farthest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()
        boxes = boxes + (groups.to(boxes) * (farthest + 1))[:, None]
    keep = torchvision.ops.nms(boxes, scores, float(cfg['iou_threshold']))
    limit = min([limit, *([cfg['max_num']] if cfg.get('max_num', -1) > 0 else [])])
    return keep[:limit]


def add_image_index(boxes: Tensor) -> Tensor:
    """Prepend the image index 0 to boxes: ``(R, 4)`` to ``(R, 5)``."""
    return torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)


class StableSorts(TorchDispatchMode):
    """Context in which PyTorch sorts stably, as graphs do; mmdet breaks ties arbitrarily."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.sort.default:
            given = dict(zip(('self', 'dim', 'descending'), args), **(kwargs or {}))
            return torch.ops.aten.sort.stable(given.pop('self'), stable=True, **given)
        return function(*args, **(kwargs or {}))
