"""The problems that preflight reports of a config, for its tests."""

import pytest

from fcvit_mm.preflight.checks import PreflightError, check_training, data_problems


def training_problems(cfg):
    """Return all problems of a training."""
    with pytest.raises(PreflightError) as caught:
        check_training(cfg)
    return caught.value.problems


def only_training_problem(cfg):
    """Return the only problem of a training."""
    (problem,) = training_problems(cfg)
    return problem


def only_problem(cfg, loader='train_dataloader'):
    """Return the only problem of a data loader."""
    (problem,) = data_problems(cfg, [loader])
    return problem


def validation_problems(cfg, number=None):
    """Return the problems of the validation set: the only line, or all of so many."""
    cfg.default_hooks.checkpoint.save_best = None  # it names a metric of the config's own evaluator
    found = data_problems(cfg, ['val_dataloader'])
    if number is None:
        (found,) = found
    else:
        assert len(found) == number, found
    return found
