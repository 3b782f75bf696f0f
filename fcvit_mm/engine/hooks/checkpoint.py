"""Checkpoints that survive whatever ends a run: kills, full disks, a scheduler's warning."""

import os
import os.path as osp
import signal
import threading
from typing import List, Optional

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook

from ...files import WriteError, write_atomic
from ...registry import HOOKS

#: What the shell says of a process that SIGTERM ended, and what tools/train.py exits with after it.
TERMINATED = 128 + signal.SIGTERM
#: Where the state goes that a run was in when it was told to end.
INTERRUPTED = 'interrupted.pth'


class Interrupted(SystemExit):
    """Training was told to end, and did after saving. Exit status ``TERMINATED``."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class LateRemovals:
    """A file backend whose removals wait: MMEngine's hook removes an old checkpoint before the new one stands."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.waiting: List[str] = []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path) -> None:
        self.waiting.append(str(path))

    rmtree = remove

    def flush(self, keep) -> None:
        """Remove them now, but for those in ``keep``."""
        for path in self.waiting:
            if path in keep:
                continue
            if self.backend.isfile(path):
                self.backend.remove(path)
            elif self.backend.isdir(path):
                self.backend.rmtree(path)
        self.waiting.clear()


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments, made safe against an end at any moment.

    - Local files are written to a temporary name, brought onto the disk and renamed. A write that fails (full disk)
      ends training with a message; what was saved before stays.
    - In the order: new checkpoint, ``last_checkpoint``, removal of old ones (``max_keep_ckpts``, earlier bests). So
      there is a complete checkpoint at any moment after the first, and ``last_checkpoint`` names one.
    - SIGTERM, by which schedulers announce the end, saves the state to ``interrupted.pth`` after the current
      iteration and exits with status 143. The next regular checkpoint replaces it.

    ``tools/train.py`` uses it in the place of ``CheckpointHook``.

    Args:
        listen_interval (int): Several processes agree every so many iterations whether one of them got SIGTERM.
        kwargs: As for ``CheckpointHook``.
    """

    def __init__(self, *args, listen_interval: int = 10, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.listen_interval = listen_interval
        self.terminated = False
        self._previous_handler = None

    # Signals

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._note)

    def stop_listening(self) -> None:
        """Let SIGTERM do again what it did before training."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def after_train(self, runner) -> None:
        self.stop_listening()
        super().after_train(runner)

    def _note(self, number, frame) -> None:
        self.terminated = True
        # Whoever told this process may have told its data loaders' workers, too. torch would raise an error for their
        # end anywhere, in the middle of a step as well; the iteration that is going on needs them no more.
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _agreed(self, runner) -> bool:
        """Whether any process was told to end; the same answer in all of them, at the same iteration."""
        if get_world_size() == 1:
            return self.terminated
        if not self.every_n_train_iters(runner, self.listen_interval):
            return False
        flag = torch.tensor(int(self.terminated))
        all_reduce(flag, 'max')
        return bool(flag)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._agreed(runner):
            # This iteration is complete, its epoch is not: `resume` goes on inside it.
            self._save_interrupted(runner, runner.iter + 1)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # No agreement here: processes may have different numbers of batches. Each ends by itself; the first one saves.
        self.save_if_terminated(runner)

    def save_if_terminated(self, runner) -> None:
        """Between iterations: save and end if SIGTERM came."""
        if not self.terminated:
            return
        if not runner.model.training:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # which puts the weights in training back
        self._save_interrupted(runner, runner.iter)

    def _save_interrupted(self, runner, iteration: int) -> None:
        runner.logger.warning(
            f'SIGTERM: saving {INTERRUPTED} after iteration {iteration} and ending. Go on with --resume'
        )
        self.stop_listening()
        try:
            runner.save_checkpoint(
                self.out_dir,
                INTERRUPTED,
                meta=dict(epoch=runner.epoch, iter=iteration),
                by_epoch=False,
                backend_args=self.backend_args,
            )
        except WriteError as error:
            raise CheckpointWriteError(error, self.last_ckpt) from error
        self._point_to(runner, self.file_backend.join_path(self.out_dir, INTERRUPTED))
        raise Interrupted

    # Files

    def before_train(self, runner) -> None:
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic_file')
        super().before_train(runner)
        self.file_backend = LateRemovals(self.file_backend)
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        if is_main_process():
            # A kill may have come between the checkpoint that was resumed and the removals that follow it.
            for name in runner.message_hub.runtime_info.get('outdated_ckpts', ()):
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))
            self._flush()
            if local:
                self._sweep()
        self._listen()

    def _sweep(self) -> None:
        """Remove what an earlier run of this work directory was writing when it was killed."""
        if not osp.isdir(self.out_dir):
            return
        for entry in os.scandir(self.out_dir):
            if entry.name.startswith('.') and '.pth.' in entry.name and entry.name.endswith('.tmp'):
                os.remove(entry.path)

    def _bests(self) -> List[Optional[str]]:
        several = getattr(self, 'best_ckpt_path_dict', {})
        return [getattr(self, 'best_ckpt_path', None), *several.values()]

    def _flush(self) -> None:
        self.file_backend.flush(keep={self.last_ckpt, *self._bests()})

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(self._path(self.keep_ckpt_ids[0]))
            self.keep_ckpt_ids.append(step)  # a deque that keeps max_keep_ckpts
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        previous, path = self.last_ckpt, self._path(step)
        self.last_ckpt = path
        runner.message_hub.update_info('last_ckpt', path)
        runner.message_hub.update_info('outdated_ckpts', list(map(osp.basename, self.file_backend.waiting)))
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except WriteError as error:
            raise CheckpointWriteError(error, previous) from error
        self._point_to(runner, path)
        if is_main_process():
            self.file_backend.remove(self.file_backend.join_path(self.out_dir, INTERRUPTED))
            self._flush()
        self.file_backend.waiting.clear()

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        try:
            super()._save_best_checkpoint(runner, metrics)
        except WriteError as error:
            if isinstance(error, CheckpointWriteError):
                raise
            raise CheckpointWriteError(error, self.last_ckpt) from error

    def _point_to(self, runner, path: str) -> None:
        if is_main_process():
            write_atomic(osp.join(runner.work_dir, 'last_checkpoint'), path.encode())


class CheckpointWriteError(WriteError):
    """A checkpoint could not be written: which, why, and where to go on from.

    Args:
        error (WriteError): Why.
        previous (str, optional): The checkpoint before it.
    """

    def __init__(self, error: WriteError, previous: Optional[str]) -> None:
        rest = (
            f'{previous} is complete: make room and go on from it with --resume'
            if previous
            else 'make room and start again'
        )
        super().__init__(f'{error}. Training ends here. {rest}')
