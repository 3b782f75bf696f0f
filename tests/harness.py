"""Running commands of tools/ and dev/ on small generated data, with configs that inherit those of this project."""

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import fork_server
import pytest
import speedups

# The environment before the first test.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith('FCVIT_MM_')}
ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}

# Configs as a user writes them to train on custom data. To save time, they have small images, one block per stage,
# narrow heads and few proposals.
CONFIGS = {
    'classification': """
_base_ = '{root}/configs/classification/fcvit_tiny_in1k.py'
data_preprocessor = dict(num_classes=5)
model = dict(head=dict(num_classes=5), backbone=dict(arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(32, 64, 160, 320), mlp_ratios=(8, 8, 4, 4))))
data = dict(_delete_=True, batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(**data, dataset=dict(type='CustomDataset', data_root='{data}', data_prefix='train',
                                             pipeline=pipeline))
val_dataloader = dict(**data, dataset=dict(type='CustomDataset', data_root='{data}', data_prefix='val',
                                           pipeline=pipeline))
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=64)],
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='PackInputs')],
    ]),
]
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
""",
    'detection': """
_base_ = '{root}/configs/detection/mask_rcnn_fcvit_tiny_coco.py'
classes = ('circle', 'cross', 'square', 'star', 'triangle')
model = dict(
    backbone=dict(init_cfg=None, arch=dict(
        _delete_=True, depths=(1, 1, 1, 1), channels=(32, 64, 160, 320), mlp_ratios=(8, 8, 4, 4))),
    neck=dict(out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=5),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32, num_classes=5)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=40), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=40), rcnn=dict(max_per_img=10)))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    data_root='{data}/', metainfo=dict(classes=classes), indices=4, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(
    data_root='{data}/', metainfo=dict(classes=classes), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
""",
    'segmentation': """
_base_ = '{root}/configs/segmentation/upernet_fcvit_tiny_ade20k.py'
metainfo = dict(classes=('background', 'circle', 'cross', 'square', 'star', 'triangle'),
                palette=[[9, 9, 9], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(init_cfg=None, arch=dict(
        _delete_=True, depths=(1, 1, 1, 1), channels=(32, 64, 160, 320), mlp_ratios=(8, 8, 4, 4))),
    decode_head=dict(channels=32, num_classes=6),
    auxiliary_head=dict(channels=16, num_classes=6))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')]
test_pipeline = train_pipeline
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    type='BaseSegDataset', reduce_zero_label=True, data_root='{data}', metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    type='BaseSegDataset', reduce_zero_label=True, data_root='{data}', metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='LoadAnnotations', reduce_zero_label=True)],
        [dict(type='PackSegInputs')],
    ]),
]
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
""",
}
KINDS = {'classification': 'imagenet', 'detection': 'coco', 'segmentation': 'ade20k'}
LAST = {'classification': 'epoch_1.pth', 'detection': 'epoch_1.pth', 'segmentation': 'iter_2.pth'}


class Trained(NamedTuple):
    """Config, checkpoint, data set, work directory and output of a run of tools/train.py."""

    config: str
    checkpoint: str
    data: Path
    work_dir: Path
    output: str


def path_of(tool):
    """Return the path of a command in ``tools`` or ``dev``."""
    return next(path for path in (ROOT / 'tools' / tool, ROOT / 'dev' / tool) if path.exists())


def load_tool(tool):
    """Import a command in ``tools`` or ``dev`` as a module."""
    path = path_of(tool)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(f'tools_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def call_tool(module, arguments):
    """Run a command in this process; its errors are raised."""
    module.main(module.parse_args(list(map(str, arguments))))


def run_tool(tool, *arguments, cwd=None, check=True, env=None, timeout=300, python=None):
    """Run a command in ``tools`` or ``dev`` as a user does; return the finished process, with stdout and stderr joined.

    The interpreter, also of processes that the command starts, is forked from a process that has imported the
    libraries. Training and testing must be started at least once with a fresh interpreter: ``python=sys.executable``.
    """
    done = start_tool(tool, *arguments, cwd=cwd, env=env, python=python).wait(timeout)
    assert not check or done.returncode == 0, done.stdout
    return done


def run_ranks(ranks, tool, *arguments, cwd=None, check=True, env=None, timeout=120):
    """Run a command in several processes with the environment variables of ``torchrun``; return the processes."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = {**(env or {}), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(ranks)}
    started = [
        start_tool(
            *(tool, *arguments, '--launcher', 'pytorch'),
            cwd=cwd,
            env={**common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
        )
        for rank in range(ranks)
    ]
    done = [process.wait(timeout) for process in started]
    assert not check or not any(process.returncode for process in done), '\n'.join(each.stdout for each in done)
    return done


def start_tool(tool, *arguments, cwd=None, env=None, python=None):
    """Start a command like :func:`run_tool`; ``wait`` returns the finished process."""
    python = python or forked_python()
    # torchrun starts the interpreter in PYTHON_EXEC.
    env = {**os.environ, 'PYTHON': python, 'PYTHON_EXEC': python, 'OMP_NUM_THREADS': '1', **(env or {})}
    env['PYTHONPATH'] = python_path()
    interpreter = [python] if tool.endswith('.py') else []
    return _Started([*interpreter, str(path_of(tool)), *map(str, arguments)], cwd, env)


class _Started:
    """A started command. Its output goes to a file, because processes that outlive it would keep a pipe open."""

    def __init__(self, command, cwd, env):
        self.output = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=cwd, env=env, stdout=self.output, stderr=subprocess.STDOUT)

    def wait(self, timeout):
        with self.output:
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                self.process.kill()
                self.process.wait()
                error.output = self.text()
                raise
            return subprocess.CompletedProcess(self.process.args, self.process.returncode, self.text())

    def text(self):
        self.output.seek(0)
        return self.output.read()


def run_python(*arguments, timeout=300, **options):
    """Run Python like ``subprocess.run``, with captured text, in a process that has imported torch and MMEngine."""
    command, env = [_Servers.get().core_python, *arguments], {**os.environ, 'PYTHONPATH': python_path()}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, **options)


def forked_python():
    """Return a command that replaces the interpreter; its processes are forked with the libraries imported."""
    return _Servers.get().python


def python_path():
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])


class _Servers:
    """Leases of the servers in ``fork_server``, which the first request starts, and the commands that use them."""

    one = None

    @classmethod
    def get(cls):
        cls.one = cls.one or cls()
        return cls.one

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.name = f'fcvit_mm-{os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)}'
        self.process = None
        self.leases = [self.lease(self.name), self.lease(self.name + fork_server.CORE)]
        self.python, self.core_python = self.command(''), self.command(fork_server.CORE)

    def lease(self, name):
        while True:
            with suppress(ConnectionRefusedError):
                connection = fork_server.connect(name)
                connection.sendall(fork_server.LEASE)
                return connection
            self.process = self.process or self.start()
            assert not self.process.poll(), 'the fork server did not start: see its traceback'
            time.sleep(0.05)

    def start(self):
        command = [sys.executable, fork_server.__file__, self.name, '--serve', *speedups.CORE, '-', *speedups.PRELOAD]
        env = {**ENVIRONMENT, 'PYTHONPATH': str(ROOT)}
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)

    def command(self, suffix):
        path = Path(self.folder.name) / f'python{suffix}'
        command = shlex.join([sys.executable, '-IS', fork_server.__file__, self.name + suffix])
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
        return str(path)


def write_config(task, folder, data, more=''):
    """Write the config of a task for a generated data set, followed by the text ``more``."""
    path = Path(folder) / f'{task}.py'
    path.write_text(CONFIGS[task].format(root=ROOT, data=data) + more)
    return path
