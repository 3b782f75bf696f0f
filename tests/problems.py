"""The problems that preflight reports of a config's data, for its tests."""

from fcvit_mm.preflight.checks import data_problems


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
