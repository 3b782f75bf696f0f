"""Running the project's tools on small generated data, with configs of one's own that inherit the project's."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import quick

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg'}

# What a user writes to train a config of the project on data of their own; small images and few proposals for speed.
CONFIGS = {
    'classification': """
_base_ = '{root}/configs/classification/fcvit_tiny_in1k.py'
data_preprocessor = dict(num_classes=5)
model = dict(head=dict(num_classes=5))
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
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)),
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
    backbone=dict(init_cfg=None),
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
    """What tools/train.py left behind, and what it printed."""

    config: str
    checkpoint: str
    data: Path
    work_dir: Path
    output: str


# Imported once, by a server that is forked for each run: they take longer than what most tests do with them.
_server = multiprocessing.get_context('forkserver')
_server.set_forkserver_preload(list(quick.PRELOAD))


def path_of(tool):
    """Return the path of a command of ``tools`` or ``dev``, whichever has it."""
    return next(path for path in (ROOT / 'tools' / tool, ROOT / 'dev' / tool) if path.exists())


def run_tool(tool, *arguments, cwd=None, check=True, env=None, timeout=300):
    """Run a command of ``tools`` or ``dev`` as a user does; the finished process, its two outputs in one.

    One in Python gets a process of its own in which the libraries are imported already. Those that start others (in
    another language, or the demo) do so anew: see that each tool is started without that help at least once.
    """
    env = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **(env or {})}
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    command = [str(path_of(tool)), *map(str, arguments)]
    if not tool.endswith('.py'):
        done = subprocess.run(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
    else:
        done = _Forked(command, cwd, env).wait(timeout)
    assert not check or done.returncode == 0, done.stdout
    return done


def run_ranks(ranks, tool, *arguments, cwd=None, check=True, env=None, timeout=120):
    """Run a command in several processes that find each other as ``torchrun``'s do, without its start; their list."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [str(path_of(tool)), *map(str, arguments), '--launcher', 'pytorch']
    common = {**os.environ, 'OMP_NUM_THREADS': '1', **(env or {}), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    common['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    started = [
        _Forked(command, cwd, {**common, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(ranks)})
        for rank in range(ranks)
    ]
    done = [process.wait(timeout) for process in started]
    assert not check or not any(process.returncode for process in done), '\n'.join(each.stdout for each in done)
    return done


class _Forked:
    """A command in a process that was forked from one which has imported the libraries."""

    def __init__(self, command, cwd, env):
        self.command = command
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name) / 'output'
        self.process = _server.Process(target=_be_tool, args=(command, str(cwd or Path.cwd()), env, str(self.output)))
        self.process.start()

    def wait(self, timeout):
        with self.folder:
            self.process.join(timeout)
            if self.process.is_alive():
                self.process.kill()
                raise subprocess.TimeoutExpired(self.command, timeout, self.output.read_text(errors='replace'))
            text = self.output.read_text(errors='replace')
            return subprocess.CompletedProcess(self.command, self.process.exitcode, text)


def _be_tool(command, cwd, env, output):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    quick.hurry_configs()
    quick.pass_over_what_is_imported()
    sys.argv = command
    sys.path[:0] = [str(Path(command[0]).parent), *env['PYTHONPATH'].split(os.pathsep)]
    runpy.run_path(command[0], run_name='__main__')


def write_config(task, folder, data, more=''):
    """A config of one's own for generated data; ``more`` is appended."""
    path = Path(folder) / f'{task}.py'
    path.write_text(CONFIGS[task].format(root=ROOT, data=data) + more)
    return path
