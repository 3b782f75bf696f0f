"""Helpers that return the problems that the preflight checks report for a config."""

import pytest

from fcvit_mm.preflight.checks import PreflightError, check_training, data_problems


def training_problems(cfg):
    """Return all problems of a training run."""
    with pytest.raises(PreflightError) as caught:
        check_training(cfg)
    return caught.value.problems


def only_training_problem(cfg):
    """Return the problem of a training run, which must have exactly one."""
    (problem,) = training_problems(cfg)
    return problem


def only_problem(cfg, loader='train_dataloader'):
    """Return the problem of a data loader, which must have exactly one."""
    (problem,) = data_problems(cfg, [loader])
    return problem


def validation_problems(cfg, number=None):
    """Return the only problem of the validation set, or with ``number`` a list of so many problems."""
    cfg.default_hooks.checkpoint.save_best = None  # it names a metric of the original evaluator
    found = data_problems(cfg, ['val_dataloader'])
    if number is None:
        (found,) = found
    else:
        assert len(found) == number, found
    return found
