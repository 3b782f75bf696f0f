"""FCViT compared with values of the published implementation, loaded by the published names."""

import json

import numpy as np
import pytest
import torch
import torch.nn as nn
from reference import NUM_CLASSES, OPTIONS, arguments, fixture, image, images, published

import fcvit_mm
from fcvit_mm.checkpoints.names import HEAD
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.models.published_names import PublishedNames

NAMES = fcvit_mm.FCViT.published_names
ATOL = 1e-5


class Classifier(nn.Module):
    """Backbone, mean over height and width, linear layer."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.backbone = fcvit_mm.FCViT(out_indices=(3,), **arguments(option))
        self.head = nn.ModuleDict({'fc': nn.Linear(self.backbone.out_channels[-1], NUM_CLASSES)})

    def forward(self, x):
        return self.head['fc'](self.backbone(x)[0].mean((2, 3)))


def our_name(key: str) -> str:
    """Name in :class:`Classifier`."""
    name = NAMES.to_ours(key)
    return f'backbone.{name}' if name else PublishedNames(HEAD).to_ours(key)


def classifier(option: str) -> Classifier:
    model = Classifier(option)
    model.load_state_dict({our_name(key): value for key, value in published(option).items()})
    return model


def close(actual: torch.Tensor, expected) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize('option', OPTIONS)
def test_outputs(option):
    expected = fixture(option)
    dense = fcvit_mm.FCViT(**arguments(option)).eval()
    dense.load_state_dict({NAMES.to_ours(key): value for key, value in published(option, dense=True).items()})
    model = classifier(option).eval()
    with torch.no_grad():
        for name, x in images().items():
            for i, feature in enumerate(dense(x)):
                close(feature, expected[f'{name}_f{i}'])
            close(model(x), expected[f'{name}_logits'])


@pytest.mark.parametrize('option', OPTIONS)
def test_as_many_parameters_as_published(option):
    names = json.loads(str(fixture(option)['names']))
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    expected = sum(int(np.prod(shape)) for key, shape in names.items() if not key.endswith(buffers))
    assert count_parameters(Classifier(option)) == expected


def test_gradients():
    """The norm and the first element of every gradient agree to 1e-5; the norms are up to 20."""
    expected = fixture('grads')
    model = classifier('default').train()
    logits = model(images()['x'])
    close(logits, expected['train_logits'])
    loss = (logits * image(logits.shape, 9)).sum()
    loss.backward()
    close(loss, expected['loss'])

    parameters = dict(model.named_parameters())
    keys = [key for key in expected if key.startswith('grad/')]
    assert {our_name(key[len('grad/') :]) for key in keys} == set(parameters)
    for key in keys:
        grad = parameters[our_name(key[len('grad/') :])].grad.double()
        norm, first = grad.norm().item(), grad.flatten()[0].item()
        np.testing.assert_allclose([norm, first], expected[key], rtol=0, atol=ATOL, err_msg=key)
