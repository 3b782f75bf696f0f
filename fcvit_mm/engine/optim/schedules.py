"""Schedules and optimizer settings of a resumed run, taken from the config as if used from the beginning."""

import itertools
import warnings
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

from ...errors import UserError

#: Attributes of a scheduler that change while it runs.
RUNNING = ('last_step', '_global_step', '_last_value', 'verbose')
#: Maximum number of differences named in a message.
SHOWN = 3


class Scheduled(NamedTuple):
    """An optimizer with its schedulers and their states in a checkpoint."""

    groups: List[dict]
    schedulers: List[Any]
    saved_groups: List[dict]
    saved: List[dict]


def _groups(wrapper: Any) -> List[dict]:
    """Return the parameter groups of an optimizer, and MMEngine's extra one for the learning rate of the config."""
    extra = getattr(wrapper, 'base_param_settings', None)
    return [*wrapper.optimizer.param_groups, *([] if extra is None else [extra])]


def _saved_groups(state: dict) -> List[dict]:
    extra = state.get('base_param_settings')
    return [*state.get('param_groups', ()), *([] if extra is None else [extra])]


def optimizers_of(runner: Any) -> Iterator[Tuple[str, Any, List[Any]]]:
    """Yield name, wrapper and schedulers of each optimizer of a run that has parameter groups."""
    wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers or []
    if hasattr(wrapper, 'optim_wrappers'):
        for name, each in wrapper.optim_wrappers.items():
            yield name, each, schedulers.get(name, []) if isinstance(schedulers, dict) else []
    elif hasattr(getattr(wrapper, 'optimizer', None), 'param_groups') and isinstance(schedulers, list):
        yield '', wrapper, schedulers


def _pairs(runner: Any, checkpoint: dict) -> Iterator[Scheduled]:
    """Yield each optimizer of a run with its state in the checkpoint."""
    for name, wrapper, schedulers in optimizers_of(runner):
        optimizer, saved = checkpoint.get('optimizer') or {}, checkpoint.get('param_schedulers')
        if name:
            optimizer, saved = optimizer.get(name) or {}, (saved or {}).get(name)
        if 'param_groups' in optimizer:
            yield Scheduled(_groups(wrapper), schedulers, _saved_groups(optimizer), [] if saved is None else saved)


def resumed_rates(runner: Any, checkpoint: dict) -> List[float]:
    """Return the learning rates with which a run resumes, after :func:`follow_config`; none without schedules."""
    found: Set[float] = set()
    for name, _, schedulers in optimizers_of(runner):
        optimizer = checkpoint.get('optimizer') or {}
        groups = (optimizer.get(name) or {} if name else optimizer).get('param_groups', [])
        found.update(group['lr'] for group in groups if schedulers)
    return sorted(found)


def settings(groups: List[dict], schedulers: List[Any]) -> List[Dict[str, Any]]:
    """Return the settings of an optimizer's groups: all but parameters and scheduled values."""
    hidden = {'params', *(scheduler.param_name for scheduler in schedulers)}
    return [{key: value for key, value in group.items() if key not in hidden} for group in groups]


def all_settings(runner: Any) -> List[List[Dict[str, Any]]]:
    """Return :func:`settings` of each optimizer of a run."""
    return [settings(_groups(wrapper), schedulers) for _, wrapper, schedulers in optimizers_of(runner)]


def follow_config(runner: Any, checkpoint: dict, before: Any, position: int, length: int, moved: bool) -> List[str]:
    """Replace optimizer settings and schedules of a checkpoint by the settings of the current config.

    MMEngine would continue with those of the checkpoint. Schedules are replayed from the start to the position.

    Args:
        runner (Runner): Runner whose optimizer and schedulers were just built.
        checkpoint (dict): Changed in place, before MMEngine takes it.
        before (list | None): :func:`all_settings` of the run that wrote the checkpoint; ``None`` if it does not contain
            them.
        position (int): Iterations done.
        length (int): Iterations per epoch; 0 in an iteration-based run.
        moved (bool): Whether the iteration count changed, so that every schedule is replayed.

    Returns:
        list[str]: The differences.

    Raises:
        UserError: The optimizer has other parameter groups.
    """
    found: List[str] = []
    for number, each in enumerate(_pairs(runner, checkpoint)):
        if len(each.groups) != len(each.saved_groups):
            raise UserError(
                f'the optimizer has {len(each.groups)} parameter groups, the checkpoint {len(each.saved_groups)}: '
                'resume with the original paramwise_cfg and constructor of optim_wrapper, and frozen_stages of the '
                'backbone, or start from its weights only, with load_from and without --resume'
            )
        names = {scheduler.param_name for scheduler in each.schedulers}
        now = settings(each.groups, each.schedulers)
        then = before[number] if before and number < len(before) else None
        differences = _differing_settings(now, then, each.saved_groups, names)
        found += differences
        replayed = _differing_schedules(each)
        found += replayed
        if differences or replayed or moved:
            _replay(each, position, length)
            saved = [scheduler.state_dict() for scheduler in each.schedulers]
            for index, scheduler in enumerate(each.schedulers):
                if _needs_metrics(scheduler) and index < len(each.saved):
                    saved[index] = each.saved[index]
            each.saved[:] = saved
            for group, target in zip(each.groups, each.saved_groups):
                target.update({key: value for key, value in group.items() if key != 'params'})
    return found


def _differing_settings(now: List[dict], then: Any, saved: List[dict], scheduled: Set[str]) -> List[str]:
    found: Dict[str, int] = {}
    for index, group in enumerate(now):
        # If the checkpoint does not contain the settings, only those that no hook changes are known.
        other = then[index] if then and index < len(then) else saved[index]
        for key in group:
            known = then is not None or key.startswith('initial_')
            if known and key in other and other[key] != group[key]:
                text = f'{key} {other[key]} -> {group[key]}'
                found[text] = found.get(text, 0) + 1
    texts = [f'optimizer: {text}' for text in itertools.islice(found, SHOWN)]
    return [*texts, f'optimizer: {len(found) - SHOWN} more settings'] if len(found) > SHOWN else texts


def _differing_schedules(each: Scheduled) -> List[str]:
    if len(each.schedulers) != len(each.saved):
        return [f'{len(each.saved)} -> {len(each.schedulers)} schedules']
    found = []
    for scheduler, saved in zip(each.schedulers, each.saved):
        now = {key: value for key, value in scheduler.state_dict().items() if key not in RUNNING}
        name = type(scheduler).__name__
        if _needs_metrics(scheduler):
            continue
        if set(now) != set(saved) - set(RUNNING):
            found.append(f'{name} replaces another schedule')
            continue
        for key, value in now.items():
            if saved[key] != value and key != 'base_values':  # base_values are settings of the optimizer
                found.append(f'{name}.{key} {_shown(saved[key])} -> {_shown(value)}')
    return found


def _shown(value: Any) -> Any:
    return sorted(value) if isinstance(value, dict) else value


def _needs_metrics(scheduler: Any) -> bool:
    return 'Plateau' in type(scheduler).__name__


def _replay(each: Scheduled, position: int, length: int) -> None:
    by_iter = [s for s in each.schedulers if not s.by_epoch and not _needs_metrics(s)]
    by_epoch = [s for s in each.schedulers if s.by_epoch and not _needs_metrics(s)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about schedulers that step before their optimizer
        for done in range(1, position + 1):
            for scheduler in by_iter:
                scheduler.step()
            if length and done % length == 0:
                for scheduler in by_epoch:
                    scheduler.step()
            if not by_iter and (not by_epoch or not length):
                break
