"""Containers and prefixes of weights in a file."""

import numpy as np
import pytest
import torch

from fcvit_mm.checkpoints import CheckpointError, weights_of
from fcvit_mm.checkpoints.names import find_state_dict, is_head, some, tensors_of

ONE, TWO = {'a': torch.ones(1)}, {'a': torch.full((1,), 2.0)}


@pytest.mark.parametrize(
    'content, ema, value',
    [
        (ONE, False, 1),
        ({'state_dict': ONE}, False, 1),
        ({'model': ONE}, False, 1),
        ({'state_dict': ONE, 'model': TWO}, False, 1),
        ({'state_dict': ONE, 'state_dict_ema': TWO}, False, 1),
        ({'state_dict': ONE, 'state_dict_ema': TWO}, True, 2),
        ({'model_ema': TWO}, False, 2),
        ({'module': ONE, 'optimizer': None}, False, 1),
        ({'state_dict': TWO, 'ema_state_dict': ONE}, False, 2),  # MMEngine's, which swaps the two
        ({'state_dict': TWO, 'ema_state_dict': ONE}, True, 2),
        ({'model_state_dict': ONE, 'optimizer_state_dict': {'state': {0: TWO}}, 'loss': 0.5}, False, 1),
        ({'params': ONE, 'params_ema': TWO}, False, 1),
        ({'checkpoint': {'model': ONE}, 'args': {'lr': 1}}, False, 1),
        ({'checkpoint': {'model': {'state_dict': ONE}}, 'epoch': 3}, False, 1),
        ({'model': {'state_dict': ONE, 'state_dict_ema': TWO}}, True, 2),
        ({'state_dict': {'model': ONE, 'optimizer': {'lr': 1}}}, False, 1),
    ],
)
def test_container(content, ema, value):
    assert weights_of(content, ema=ema)['a'] == value
    assert find_state_dict(content, 'a.pth', ema)[1].startswith('averaged (EMA)' if value == 2 else 'trained weights')


def test_other_containers():
    many = {'a': torch.ones(1), 'b': torch.ones(1)}
    assert find_state_dict({'net': many, 'loss': torch.ones(1)}) == (many, 'trained weights, net')
    several = {'generator': ONE, 'discriminator': TWO}  # neither is the model
    assert find_state_dict(several) == (several, 'trained weights')
    mixed = {'a': torch.ones(1), 'extra': ONE}
    assert find_state_dict(mixed) == (mixed, 'trained weights')
    nested = {'checkpoint': {'model': ONE}}
    assert find_state_dict(nested) == (ONE, 'trained weights, model (checkpoint)')
    assert find_state_dict({'model': {'state_dict': ONE}}) == (ONE, 'trained weights, state_dict (model)')
    assert find_state_dict({'model': {'state_dict': {}}})[0] == {}


def test_missing_averaged_weights_are_reported():
    with pytest.raises(CheckpointError, match=r"a.pth has no averaged \(EMA\) weights, expected one of \['state_di"):
        weights_of({'state_dict': ONE}, 'a.pth', ema=True)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_prefixes_of_wrappers_are_removed(prefix):
    assert list(tensors_of({f'{prefix}a.module.b': torch.ones(1)})) == ['a.module.b']


@pytest.mark.parametrize('name', ['_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'])
def test_names_of_wrapped_parts_of_a_model(name):
    wrapped = {f'module.{name}.a.{name}.{name}.b': torch.ones(1), f'a.my{name}.{name}': torch.ones(1)}
    assert list(tensors_of(wrapped)) == ['a.b', f'a.my{name}.{name}']


def test_only_tensors_are_weights():
    found = tensors_of(
        {
            'array': np.ones(2),
            'named': ('param_0', np.ones(3)),
            'text': np.array(['a']),
            'number': 1.0,
            1: torch.ones(1),
            'StructuredToParameterName@@': {},
        }
    )
    assert {name: tuple(value.shape) for name, value in found.items()} == {'array': (2,), 'named': (3,)}


def test_heads_and_necks():
    assert is_head('head.fc.weight') and is_head('neck.convs.0.weight') and is_head('roi_head.bbox_head.fc.weight')
    assert not is_head('headless.weight') and not is_head('stages.0.head')


def test_some():
    assert some([]) == 'nothing' and some('ab') == 'a, b' and some('abcde') == 'a, b, c and 2 more'
