"""Non-finite losses and gradients, found before they reach the weights."""

import math
from functools import partial
from typing import Any, Callable, Dict, List, Optional

import torch
from mmengine.dist import all_gather_object, all_reduce, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ...errors import UserError
from ...registry import HOOKS
from ..optim.steps import call_before_step

ACTIONS = ('stop', 'skip')
#: Maximum number of gradients and images named in a message.
SHOWN = 5


class NonFiniteError(UserError):
    """The loss or a gradient is NaN or infinite."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Hook that stops training, or skips the step, when the loss or a gradient is NaN or infinite.

    ``tools/train.py`` adds it.

    Gradients are checked right before the optimizer's step, so neither weights nor the optimizer's state ever take a
    non-finite value. All processes stop or skip the step if one of them finds such a gradient, because with FSDP each
    has only a part of the gradients. Steps skipped by MMEngine's ``AmpOptimWrapper`` because the loss scale was too
    large for float16 are not counted; only the loss is checked then.

    Args:
        action (str): ``'stop'`` ends training with a message; ``'skip'`` skips the step, restores the running
            statistics of norms as they were before the batch, and warns.
        max_skips (int): Number of consecutive skipped steps that ends training; only for ``'skip'``.

    Raises:
        UserError: An unknown action, or ``max_skips`` below 1.
    """

    priority = 'VERY_HIGH'  # before anything logs, averages or saves the result of the iteration

    def __init__(self, action: str = 'stop', max_skips: int = 10) -> None:
        if action not in ACTIONS:
            raise UserError(f'action is {action!r}, expected one of {list(ACTIONS)}')
        if max_skips < 1:
            raise UserError(f'max_skips is {max_skips}, expected 1 or more')
        self.action = action
        self.max_skips = max_skips
        self.total = self.in_a_row = 0
        self._found: Optional[str] = None
        self._buffers: List[Tensor] = []
        self._ends: List[Callable[[], None]] = []

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrappers = list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            optimizer = getattr(each, 'optimizer', None)
            if isinstance(optimizer, torch.optim.Optimizer):
                check = partial(self._check_gradients, optimizer, runner.model)
                self._ends.append(call_before_step(optimizer, check))
            else:
                runner.logger.warning(
                    f'NonFiniteHook only checks the loss: {type(each).__name__} has no torch optimizer, whose '
                    'gradients could be checked before the step'
                )

    def after_train(self, runner: Runner) -> None:
        for end in self._ends:
            end()
        self._ends.clear()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._found = None
        if self.action == 'skip':
            self._buffers = [buffer.clone() for buffer in runner.model.buffers()]

    def _check_gradients(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Describe non-finite gradients, and remove them from the optimizer, in all processes alike."""
        grads = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        largest = [torch.linalg.vector_norm(grad, float('inf')) for grad in grads]  # NaN where one is
        finite = torch.ones((), dtype=torch.int)
        if grads:
            finite = torch.stack([value.float().to(grads[0].device) for value in largest]).isfinite().all().int()
        all_reduce(finite, 'min')  # with FSDP, each process has a part of the gradients
        if finite:
            return
        self._found = describe_gradients(model)
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = None  # all optimizers of torch skip such parameters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        losses = {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in (outputs or {}).items()
            if isinstance(value, (int, float)) or isinstance(value, Tensor) and value.numel() == 1
        }
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if self._found is None and not wrong:
            self.in_a_row = 0
            return
        wrong_part = 'non-finite loss' if wrong else 'non-finite gradients'
        images = names_of(data_batch)
        if self._found is not None and is_distributed():  # the same in all processes; the cause may be another's batch
            batches = all_gather_object((wrong, images))
            rank = next((rank for rank, (other, _) in enumerate(batches) if other), None)
            if rank is None:
                images = ', '.join(names for _, names in batches)
            else:
                wrong, images = batches[rank]
                wrong_part = f'non-finite loss of process {rank}'
        what = ', '.join(f'{name} = {value}' for name, value in (wrong or losses).items())
        gradients = self._found or 'Gradients were not checked: this iteration made no optimizer step'
        message = f'iteration {runner.iter + 1}: {wrong_part}: {what}. {gradients}. Images of the batch: {images}'
        if self.action == 'skip':
            self.total += 1
            self.in_a_row += 1
            with torch.no_grad():
                for buffer, before in zip(runner.model.buffers(), self._buffers):
                    buffer.copy_(before)
            runner.logger.warning(f'{message}. The step is skipped ({self.total} so far, {self.in_a_row} in a row)')
            if self.in_a_row < self.max_skips:
                return
            message += f'. {self.in_a_row} steps in a row were skipped'
        last = runner.message_hub.runtime_info.get('last_ckpt', 'not written yet')
        raise NonFiniteError(
            f'{message}. The weights are unchanged by this step; the last checkpoint is {last}. Lower the learning '
            'rate, set optim_wrapper.clip_grad, or train without float16 (dtype="bfloat16"); to skip such steps, in '
            "the config file: custom_hooks=[dict(type='NonFiniteHook', action='skip')]"
        )


def describe_gradients(model: nn.Module) -> str:
    """Describe the non-finite gradients of all processes, and the finite ones with the largest norms."""
    norms: Dict[str, float] = {}
    wrong = []
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        name = name.replace('_fsdp_wrapped_module.', '')
        if torch.isfinite(parameter.grad).all():
            norms[name] = parameter.grad.double().norm().item()
        else:
            wrong.append(name)
    parts = all_gather_object((wrong, norms))
    wrong = list(dict.fromkeys(name for names, _ in parts for name in names))
    norms = {name: norm for _, finite in parts for name, norm in finite.items() if name not in wrong}
    largest = sorted(norms, key=lambda name: norms[name], reverse=True)[:SHOWN]
    more = ', ...' if len(wrong) > SHOWN else ''
    named = ', '.join(f'{name} {norms[name]:.3g}' for name in largest) or 'none'
    return (
        f'{len(wrong)} of {len(wrong) + len(norms)} gradients are not finite ({", ".join(wrong[:SHOWN])}{more}); '
        f'largest finite ones: {named}'
    )


def names_of(data_batch: Any) -> str:
    """Return the image paths of a batch, if its samples have them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    paths = [str(getattr(sample, 'img_path', None) or '?') for sample in samples or []]
    return ', '.join(paths[:SHOWN] + (['...'] if len(paths) > SHOWN else [])) or 'not known'
