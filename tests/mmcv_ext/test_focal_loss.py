"""Focal losses have the values and gradients of their definition."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def focal(logits, classes, gamma=2.0, alpha=0.25):
    """Sigmoid focal loss as its paper (arXiv 1708.02002, equation 5) has it."""
    hit = F.one_hot(classes, logits.shape[1] + 1)[:, :-1].bool()
    chance = torch.where(hit, logits.sigmoid(), 1 - logits.sigmoid())
    return -torch.where(hit, alpha, 1 - alpha) * (1 - chance) ** gamma * chance.log()


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss(weighted):
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.randn(7, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 3, 2, 1, 0, 2, 1] if weighted else [0, 4, 4, 1, 3, 2, 4])  # 4: background
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5]) if weighted else None
    expected = focal(logits, classes) * (weight[classes][:, None] if weighted else 1)
    found = sigmoid_focal_loss(logits, classes, 2.0, 0.25, weight, 'sum')
    torch.testing.assert_close(found, expected.sum())
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected.sum())))


def test_softmax_focal_loss():
    from mmcv.ops import softmax_focal_loss

    logits = torch.randn(6, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 4, 2, 1, 3, 3])
    chance = logits.softmax(1).gather(1, classes[:, None])
    expected = (-0.25 * (1 - chance) ** 2 * chance.log()).sum()
    found = softmax_focal_loss(logits, classes, 2.0, 0.25, None, 'sum')
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))
