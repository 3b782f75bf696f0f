import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook

from fcvit_mm.engine.hooks import NonFiniteHook
from fcvit_mm.engine.hooks.defaults import add_training_hooks, skip_corrupt_samples, write_checkpoints_atomically
from fcvit_mm.registry import HOOKS


def types(hooks):
    return [hook['type'] if isinstance(hook, dict) else type(hook) for hook in hooks]


def test_hooks_of_the_config_have_precedence():
    cfg = Config(
        dict(
            custom_hooks=[dict(type='NonFiniteHook', action='skip')], default_hooks=dict(checkpoint=dict(type='MyHook'))
        )
    )
    write_checkpoints_atomically(cfg)
    add_training_hooks(cfg)
    # Which saves at SIGTERM alone.
    assert types(cfg.custom_hooks) == ['NonFiniteHook', 'AtomicCheckpointHook', 'ResumableHook']
    assert cfg.custom_hooks[1].interval == -1
    assert cfg.custom_hooks[0].action == 'skip' and cfg.default_hooks.checkpoint.type == 'MyHook'


def test_hooks_are_known_as_classes_objects_and_by_deprecated_names():
    mine = NonFiniteHook(action='skip')
    cfg = Config(
        dict(
            custom_hooks=[dict(type='BrokenPictureHook', limit=0.5), dict(type=EMAHook), mine],
            default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=7)),
        )
    )
    write_checkpoints_atomically(cfg)
    add_training_hooks(cfg)
    skip_corrupt_samples(cfg)
    assert cfg.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=7)
    assert types(cfg.custom_hooks) == ['BrokenPictureHook', EMAHook, NonFiniteHook, 'ResumableHook']
    with pytest.warns(DeprecationWarning, match='BrokenPictureHook is deprecated .* use SkipCorruptSamplesHook'):
        assert HOOKS.build(cfg.custom_hooks[0]).limit == 0.5
