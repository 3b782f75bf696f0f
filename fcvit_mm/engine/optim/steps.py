"""Functions that are called before an optimizer's steps."""

from functools import wraps
from types import MethodType
from typing import Any, Callable

import torch


def call_before_step(optimizer: torch.optim.Optimizer, function: Callable[[], None]) -> Callable[[], None]:
    """Call a function before each step of an optimizer, also one that a gradient scaler makes.

    torch's ``register_step_pre_hook`` is not used: in torch 2.1, optimizers silently stop calling such hooks once
    anything in the process has used ``torch.compile``.

    Args:
        optimizer (torch.optim.Optimizer): The optimizer; its attribute ``step`` is replaced, as schedulers do.
        function (callable): The function, without arguments.

    Returns:
        callable: A function that ends the calls.
    """
    # Schedulers set `step` on the instance, and read attributes of it, which ``wraps`` copies.
    before = vars(optimizer).get('step')
    step = optimizer.step
    active = True

    @wraps(getattr(step, '__func__', step))
    def called_before(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if active:
            function()
        return step(*args, **kwargs)

    ours = MethodType(called_before, optimizer)

    def end() -> None:
        nonlocal active
        active = False
        if vars(optimizer).get('step') is not ours:  # something else has wrapped it since
            return
        if before is None:
            del optimizer.step
        else:
            vars(optimizer)['step'] = before

    vars(optimizer)['step'] = ours
    return end
