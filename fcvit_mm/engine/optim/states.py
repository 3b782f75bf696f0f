"""States of optimizers in a checkpoint to resume from: PyTorch loads incomplete ones silently."""

import contextlib
import inspect
from typing import Any, Iterator, List, NamedTuple

import torch

from ...errors import UserError
from .schedules import optimizers_of

#: Maximum number of parameters named in a message.
SHOWN = 3
WAY_OUT = 'resume from another checkpoint, or start from its weights only, with load_from and without --resume'


class States(NamedTuple):
    """The parameters of an optimizer in a checkpoint.

    Attributes:
        optimizer (torch.optim.Optimizer): Today's optimizer.
        present (list[bool]): Whether the checkpoint has a state of each parameter.
        sizes (list[int]): Number of parameters of each group in the checkpoint.
    """

    optimizer: Any
    present: List[bool]
    sizes: List[int]


def states_in(runner: Any, saved: dict) -> Iterator[States]:
    """Yield the states of each optimizer of a run in the entry ``optimizer`` of a checkpoint.

    States stored under parameter names, as FSDP writes them, are not checked, because FSDP's optimizer has other
    parameters than the file.
    """
    for name, wrapper, _ in optimizers_of(runner):
        own = saved.get(name) or {} if name else saved
        groups = own.get('param_groups') or ()
        keys = [each for group in groups for each in group['params']]
        if groups and all(isinstance(each, int) for each in keys):
            state = own.get('state') or {}
            sizes = [len(group['params']) for group in groups]
            yield States(wrapper.optimizer, [bool(state.get(each)) for each in keys], sizes)


def count_states(runner: Any, saved: dict) -> List[int]:
    """Return the number of parameters with a state of each optimizer in a checkpoint."""
    return [sum(each.present) for each in states_in(runner, saved)]


def missing_states(runner: Any, saved: dict, before: Any) -> str:
    """Describe parameters that are trained and whose state is not in a checkpoint; empty if there are none.

    A parameter that never got a gradient has no state, so their number is compared with the one at writing.

    Args:
        runner (Runner): Its optimizers were just built.
        saved (dict): The entry ``optimizer`` of the checkpoint, which was written after the first iteration.
        before (list[int] | None): :func:`count_states` at writing; ``None`` if the checkpoint does not contain it.

    Raises:
        UserError: The checkpoint has no state at all, or fewer states than when it was written, or a group of an
            optimizer has another number of parameters.
    """
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    texts = []
    for number, (optimizer, present, sizes) in enumerate(states_in(runner, saved)):
        kind = type(optimizer).__name__
        for index, (group, size) in enumerate(zip(optimizer.param_groups, sizes)):
            if len(group['params']) != size:
                raise UserError(
                    f'parameter group {index} of the optimizer has {len(group["params"])} parameters, in the '
                    f'checkpoint {size}: {WAY_OUT}'
                )
        parameters = [each for group in optimizer.param_groups for each in group['params']]
        known = before is not None and number < len(before)
        if known and sum(present) < before[number]:
            raise UserError(
                f'the checkpoint has the optimizer state ({kind}) of {sum(present)} of {len(present)} parameters, but '
                f'of {before[number]} when it was written, so it was changed since: {WAY_OUT}'
            )
        if known or not keeps_state(optimizer):
            continue
        lacking = [each for each, there in zip(parameters, present) if not there and each.requires_grad]
        if lacking and not any(present):
            raise UserError(f'the checkpoint has no optimizer state ({kind}) of any parameter: {WAY_OUT}')
        if lacking:
            shown = ', '.join(names.get(id(each), '?') for each in lacking[:SHOWN])
            texts.append(
                f'the checkpoint has no optimizer state ({kind}) of {len(lacking)} of {len(parameters)} parameters '
                f'({shown}{", ..." if len(lacking) > SHOWN else ""}), which start without one. This is right if they '
                'get no gradient'
            )
    return '; '.join(texts)


def keeps_state(optimizer: Any) -> bool:
    """Check, with a step on one parameter, whether an optimizer keeps a state; ``False`` if this cannot be tried."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    with contextlib.suppress(Exception):  # optimizers may be from anywhere
        known = inspect.signature(type(optimizer)).parameters
        trial = type(optimizer)(
            [parameter], **{key: optimizer.defaults[key] for key in optimizer.defaults if key in known}
        )
        trial.step()
        return any(value is not None for value in trial.state.get(parameter, {}).values())
    return False
