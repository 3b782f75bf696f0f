"""Values computed from weights are cached until something that they depend on changes."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn

from fcvit_mm.models.caches import CachedWeight, ModuleCache


def doubled(seen):
    return lambda weight: seen.append(weight) or 2 * weight.detach()


def test_weight_is_converted_again_when_it_changes():
    cache, seen, layer = CachedWeight(), [], nn.Linear(3, 2)
    for _ in range(3):
        assert torch.equal(cache.get(layer.weight, doubled(seen)), 2 * layer.weight)
    assert len(seen) == 1
    changes = [
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict(nn.Linear(3, 2).state_dict()),
        lambda: setattr(layer, 'weight', nn.Parameter(torch.ones(2, 3))),
    ]
    for number, change in enumerate(changes, 2):
        with torch.no_grad():
            change()
        assert torch.equal(cache.get(layer.weight, doubled(seen)), 2 * layer.weight) and len(seen) == number
    cache.get(layer.weight, doubled(seen), 'another condition')
    assert len(seen) == len(changes) + 2


@pytest.mark.parametrize('kind', [CachedWeight, ModuleCache])
def test_new_values_in_the_memory_of_freed_ones_are_noticed(kind):
    """The next tensor of its size usually gets the memory of a freed weight."""
    layer, cache = nn.Linear(256, 256, bias=False), kind()
    for number in range(5):
        layer.weight.data = torch.empty(0)
        layer.weight.data = torch.full((256, 256), float(number))
        args = (layer.weight, torch.clone) if kind is CachedWeight else (layer, layer.weight.clone)
        assert torch.equal(cache.get(*args), layer.weight)


@pytest.mark.parametrize('transfer', [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_cached_values_are_not_copied_or_pickled(transfer):
    layer, seen = nn.Linear(3, 2), []
    for cache in (CachedWeight(), ModuleCache()):
        make = (
            (layer.weight, doubled(seen)) if isinstance(cache, CachedWeight) else (layer, lambda: seen.append(0) or 1)
        )
        cache.get(*make)
        seen.clear()
        transfer(cache).get(*make)
        assert len(seen) == 1


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Sequential(nn.Conv2d(4, 2, 1)))


CHANGES = {
    'a weight in place': lambda net: nn.init.zeros_(net[0].weight),
    'another parameter': lambda net: setattr(net[1], 'weight', nn.Parameter(torch.ones(4))),
    'no parameter': lambda net: setattr(net[1], 'bias', None),
    'a setting': lambda net: setattr(net[1], 'eps', 0.5),
    'the mode': lambda net: net[2].train(False),
    'a child of a child': lambda net: net[2].__setitem__(0, nn.Conv2d(4, 2, 1)),
    'a hook': lambda net: net[2][0].register_forward_hook(lambda *_: None),
    'hooks by another dictionary': lambda net: setattr(net[1], '_forward_hooks', {0: print}),
    'a forward of its own': lambda net: setattr(net[0], 'forward', lambda x: x),
    'a deleted setting': lambda net: delattr(net[1], 'eps'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_cached_value_is_recomputed_after_a_change(change):
    net, cache, made = network(), ModuleCache(), []

    def get():
        return cache.get(net, lambda: made.append(0) or len(made))

    assert get() == get() == 1
    CHANGES[change](net)
    assert get() == 2


def test_none_is_not_cached():
    net, cache, answers = network(), ModuleCache(), [None, 5]
    assert cache.get(net, lambda: answers.pop(0)) is None
    assert cache.get(net, lambda: answers.pop(0)) == 5
    assert cache.get(net, lambda: answers.pop(0)) == 5


def test_cached_value_is_recomputed_for_other_options():
    net, cache, made = network(), ModuleCache(), []
    for option in (1, 1, 2, 1):
        assert cache.get(net, lambda each: made.append(each) or 10 * each, option) == 10 * option
    assert made == [1, 2, 1]
