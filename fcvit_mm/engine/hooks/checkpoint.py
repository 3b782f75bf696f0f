"""Checkpoints that survive any end of a run: SIGKILL, a full disk, a scheduler's SIGTERM."""

import os
import os.path as osp
import signal
import threading
from types import FrameType
from typing import Any, Collection, Dict, List, Optional

import numpy as np
import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import Runner, find_latest_checkpoint

from ...files import WriteError, lacks_space, remove_temporaries, write_atomic
from ...registry import HOOKS

#: Exit status after SIGTERM, as shells report it.
TERMINATED = 128 + signal.SIGTERM
#: Checkpoint that is saved when a run receives SIGTERM.
INTERRUPTED = 'interrupted.pth'


class Interrupted(SystemExit):
    """Training ended after SIGTERM, with its state saved. Exit status ``TERMINATED``."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class DeferredRemovals:
    """File backend that defers removals: MMEngine's hook removes an old checkpoint before it writes the new one."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.waiting: List[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: Any) -> None:
        self.waiting.append(str(path))

    rmtree = remove

    def flush(self, keep: Collection[Optional[str]]) -> None:
        """Remove the files whose removal was deferred, except ``keep``."""
        for path in self.waiting:
            if path in keep:
                continue
            if self.backend.isfile(path):
                self.backend.remove(path)
            elif self.backend.isdir(path):
                self.backend.rmtree(path)
        self.waiting.clear()


class _Forks:
    """Signal handling of forked processes: they end at SIGTERM, while the training process only records it.

    mmdet's ``VOCMetric`` ends the processes of its pool by SIGTERM and waits for them. SIGTERM is blocked during a
    fork, because Python loses a signal that arrives before its handlers are set.
    """

    listening = registered = False
    mask: Any = None

    @classmethod
    def listen(cls, listening: bool) -> None:
        """Enable or disable this treatment of forked processes."""
        cls.listening = listening
        if not cls.registered and hasattr(os, 'register_at_fork'):  # Windows has no fork
            cls.registered = True
            os.register_at_fork(before=cls._before, after_in_parent=cls._in_parent, after_in_child=cls._in_child)

    @classmethod
    def _before(cls) -> None:
        cls.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if cls.listening else None

    @classmethod
    def _in_parent(cls) -> None:
        if cls.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, cls.mask)

    @classmethod
    def _in_child(cls) -> None:
        if cls.mask is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, cls.mask)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments, safe against an interruption at any moment.

    - Local files are written atomically (:mod:`fcvit_mm.files`). A write that fails (full disk) ends training with a
      message; earlier checkpoints are kept.
    - The order is: new checkpoint, ``last_checkpoint``, removal of old ones (``max_keep_ckpts``, earlier bests). So at
      any moment after the first checkpoint a complete one exists, and ``last_checkpoint`` names it.
    - SIGTERM, by which schedulers announce the end, saves the state to ``interrupted.pth`` after the current
      iteration and exits with status 143. The next regular checkpoint replaces it. A SIGTERM that comes while the
      state is saved (``torchrun`` sends one to all others as soon as one process has ended) changes nothing.

    ``tools/train.py`` uses it instead of ``CheckpointHook``.

    Args:
        listen_interval (int): Iterations between the checks whether any process received SIGTERM.
        kwargs: Arguments of ``CheckpointHook``.
    """

    def __init__(self, *args: Any, listen_interval: int = 10, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend_args: Optional[dict]
        self.file_backend: Any
        self.listen_interval = listen_interval
        self.terminated = False
        self._previous_handler: Any = None
        self._interrupted_at: Optional[Dict[str, int]] = None

    # Signals

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            _Forks.listen(True)
            self._previous_handler = signal.signal(signal.SIGTERM, self._note)

    def stop_listening(self) -> None:
        """Restore the previous SIGTERM handler, after the state is saved, because SIGTERM may arrive again."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None
            _Forks.listen(False)

    def after_train(self, runner: Runner) -> None:
        self.stop_listening()
        super().after_train(runner)
        interrupted = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        final = self._path(runner.epoch if self.by_epoch else runner.iter)
        if is_main_process() and self.last_ckpt == final and self.file_backend.exists(interrupted):
            # SIGTERM came during the last validation, so no later checkpoint replaces interrupted.pth.
            self._write_last(runner, final)
            self.file_backend.remove(interrupted)
            self._flush()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.terminated = True
        # The data loaders' workers may have received SIGTERM, too. torch would raise an error when they end, even in
        # the middle of a step, although the current iteration does not need them any more.
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _agreed(self, runner: Runner) -> bool:
        """Check whether any process received SIGTERM; all processes agree at the same iteration."""
        if get_world_size() == 1:
            return self.terminated
        if not self.every_n_train_iters(runner, self.listen_interval):
            return False
        flag = torch.tensor(int(self.terminated))
        all_reduce(flag, 'max')
        return bool(flag)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._agreed(runner):
            try:
                # This iteration is complete, its epoch is not: the run resumes inside it.
                self._save_interrupted(runner, runner.iter + 1)
            finally:
                barrier()  # because a launcher kills the other processes as soon as one has ended

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        # No agreement here: processes may have different numbers of batches. Each ends by itself; the first one saves.
        self.save_if_terminated(runner)

    def save_if_terminated(self, runner: Runner) -> None:
        """Save the state and end training if SIGTERM was received; called between iterations."""
        if not self.terminated:
            return
        if not runner.model.training:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # restores the raw weights
        self._save_interrupted(runner, runner.iter)

    def _save_interrupted(self, runner: Runner, iteration: int) -> None:
        runner.logger.warning(
            f'SIGTERM: saving {INTERRUPTED} after iteration {iteration} and exiting. Resume with --resume'
        )
        self._interrupted_at = dict(epoch=runner.epoch, iter=iteration)
        try:
            runner.save_checkpoint(
                self.out_dir,
                INTERRUPTED,
                meta=dict(self._interrupted_at),
                by_epoch=False,
                backend_args=self.backend_args,
            )
        except WriteError as error:
            raise CheckpointWriteError(error, self.last_ckpt) from error
        self._point_to(runner, self.file_backend.join_path(self.out_dir, INTERRUPTED))
        raise Interrupted

    # Files

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._interrupted_at is not None:
            checkpoint['meta'].update(self._interrupted_at)  # MMEngine's FlexibleRunner has overwritten them

    def before_train(self, runner: Runner) -> None:
        local = '://' not in str(self.out_dir or runner.work_dir)
        if local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic_file')
        super().before_train(runner)
        self.file_backend = DeferredRemovals(self.file_backend)
        self._move_to_this_run(runner)
        if is_main_process():
            # The run may have been killed after it wrote the resumed checkpoint, before it removed what is older.
            for name in runner.message_hub.runtime_info.get('outdated_ckpts', ()):
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))
            if self._resumes_regular(runner):
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, INTERRUPTED))
            self._flush()
            if local:
                remove_temporaries(self.out_dir)  # of an earlier run of this work directory
        self._listen()

    @staticmethod
    def _resumes_regular(runner: Runner) -> bool:
        """Check whether the run resumes from its last checkpoint, and this is a regular one."""
        last = find_latest_checkpoint(runner.work_dir) if runner._resume else None
        if last is None:
            return False
        names = {osp.basename(str(path)) for path in (last, runner._load_from or last)}
        return len(names) == 1 and names != {INTERRUPTED}

    def _move_to_this_run(self, runner: Runner) -> None:
        """Change the checkpoint paths of a resumed run to this run's folder: MMEngine would remove the other files.

        A checkpoint contains paths in the folder in which it was written. That is another folder if the checkpoint of
        another run, or a copied folder, is resumed.
        """
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key == 'best_ckpt' or key.startswith('best_ckpt_')]:
            info[key] = self._in_this_run(info[key])
        self.last_ckpt = self._in_this_run(info.get('last_ckpt')) or info.get('last_ckpt')
        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = info['best_ckpt']
        paths = getattr(self, 'best_ckpt_path_dict', {})
        paths.update({name: info[f'best_ckpt_{name}'] for name, path in paths.items() if path})

    def _in_this_run(self, path: Optional[str]) -> Optional[str]:
        """Return the path that a checkpoint has in this run's folder; ``None`` if it is not there."""
        if not path:
            return None
        own = self.file_backend.join_path(self.out_dir, osp.basename(path))
        return own if path == own or self.file_backend.isfile(own) or self.file_backend.isdir(own) else None

    def _bests(self) -> List[Optional[str]]:
        several = getattr(self, 'best_ckpt_path_dict', {})
        return [getattr(self, 'best_ckpt_path', None), *several.values()]

    def _flush(self) -> None:
        self.file_backend.flush(keep={self.last_ckpt, *self._bests()})

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
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

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, Any]) -> None:
        # The best score is saved, too, but torch.load(weights_only=True) does not read NumPy scalars.
        metrics = {name: value.item() if isinstance(value, np.generic) else value for name, value in metrics.items()}
        try:
            super()._save_best_checkpoint(runner, metrics)
        except WriteError as error:
            if isinstance(error, CheckpointWriteError):
                raise
            raise CheckpointWriteError(error, self.last_ckpt) from error

    def _point_to(self, runner: Runner, path: str) -> None:
        if self.file_backend.isdir(path):
            barrier()  # a folder is complete when every process has written its file
        if is_main_process():
            self._write_last(runner, path)

    @staticmethod
    def _write_last(runner: Runner, path: str) -> None:
        try:
            write_atomic(osp.join(runner.work_dir, 'last_checkpoint'), path.encode())
        except WriteError as error:
            raise CheckpointWriteError(error, path) from error


class CheckpointWriteError(WriteError):
    """A checkpoint could not be written. The message names the file, the reason and the checkpoint to resume from.

    Args:
        error (WriteError): The cause.
        previous (str, optional): Path of the previous checkpoint.
    """

    def __init__(self, error: WriteError, previous: Optional[str]) -> None:
        solution = ''
        if isinstance(error.__cause__, FileNotFoundError):
            solution = '. Check that no other run writes to this folder (give each its own --work-dir)'
        elif not lacks_space(error.__cause__):
            solution = '. Make the folder writable'
        rest = f'. {previous} is complete: resume from it with --resume' if previous else ''
        super().__init__(f'{error}{solution}. Training ends here{rest}')
