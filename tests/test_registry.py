"""The registries that contain the types of this package."""

import mmengine.registry
import pytest

import fcvit_mm
from fcvit_mm import registry


@pytest.mark.parametrize('name', registry.__all__)
def test_registries_are_mmengines_root_registries(name):
    found = getattr(registry, name)
    assert found is getattr(mmengine.registry, name) and found.parent is None


@pytest.mark.parametrize(
    'registry, name',
    [
        (registry.MODELS, 'FCViT'),
        (registry.MODELS, 'fcvit_mm.FCViT'),
        (registry.HOOKS, 'SkipCorruptSamplesHook'),
        (registry.OPTIM_WRAPPER_CONSTRUCTORS, 'BackboneLayerDecayConstructor'),
    ],
)
def test_types_are_found_by_their_names(registry, name):
    assert registry.get(name).__module__.startswith(f'{fcvit_mm.__name__}.')
