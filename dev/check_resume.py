"""Kill training repeatedly, resume it, and compare with an uninterrupted run.

For each task a tiny model is trained on generated images in processes that get SIGKILL: at random moments, while a
checkpoint is written, and during validation. Some processes get SIGTERM or a full disk instead. After each process, all
checkpoints must be complete, and last_checkpoint must name one. The run that is finally not interrupted must have seen
the same images, augmented to the same values, and end with the same weights, bit for bit. Exit status 1 if anything
differs.

    python dev/check_resume.py --kills 50 --out reliability.json
"""

import errno
import fcntl
import hashlib
import importlib
import json
import mmap
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '1')

import mmengine
import torch
from mmengine.config import config as mmengine_config
from mmengine.hooks import Hook
from mmengine.runner import runner
from mmengine.utils.dl_utils import collect_env

from fcvit_mm import files
from fcvit_mm.checkpoints import CheckpointError, read_checkpoint
from fcvit_mm.datasets import generate
from fcvit_mm.dependencies import require
from fcvit_mm.engine import run
from fcvit_mm.engine.config import load_config
from fcvit_mm.engine.hooks import checkpoint
from fcvit_mm.engine.hooks.checkpoint import INTERRUPTED, TERMINATED, Interrupted
from fcvit_mm.engine.machine import adapt_to_machine, train_in_float32_on_cpus
from fcvit_mm.engine.resume_point import select_resume_point
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.registry import HOOKS

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
model = dict(backbone=dict(drop_path_rate=0.2, init_cfg=None, arch=dict(
    _delete_=True, depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))))
custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='RecordingHook')]
randomness = dict(seed=7)
"""
#: Configs of the tasks: epoch-based and iteration-based, with augmentation, drop path, averaged weights, best and last
#: checkpoints.
TASKS = {
    'classification': dict(
        package='mmpretrain',
        kind='imagenet',
        config="""
_base_ = '{root}/configs/classification/fcvit_tiny_shapes.py'
"""
        + SMALL
        + """
model.update(head=dict(in_channels=32), train_cfg=dict(_delete_=True, augments=dict(type='Mixup', alpha=0.8)))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data_root='{data}'))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data_root='{data}'))
train_cfg = dict(max_epochs=3)
""",
    ),
    'detection': dict(
        package='mmdet',
        kind='coco',
        config="""
_base_ = '{root}/configs/detection/mask_rcnn_fcvit_tiny_shapes.py'
"""
        + SMALL
        + """
model.update(
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16)),
    train_cfg=dict(rpn=dict(sampler=dict(num=16)), rpn_proposal=dict(nms_pre=50, max_per_img=20),
                   rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=10), rcnn=dict(max_per_img=5)))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data_root='{data}/'))
val_dataloader = dict(num_workers=0, dataset=dict(data_root='{data}/'))
val_evaluator = dict(ann_file='{data}/annotations/instances_val2017.json')
train_cfg = dict(max_epochs=3, val_interval=1)
""",
    ),
    'segmentation': dict(
        package='mmseg',
        kind='ade20k',
        config="""
_base_ = '{root}/configs/segmentation/upernet_fcvit_tiny_shapes.py'
"""
        + SMALL
        + """
model.update(
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(channels=8, in_channels=[8, 16, 24, 32]), auxiliary_head=dict(channels=8, in_channels=24))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(64, 64), ratio_range=(1., 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(data_root='{data}', pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(data_root='{data}'))
train_cfg = dict(max_iters=12, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=2))
""",
    ),
}
#: Phases of a process, which it reports to the parent that kills it.
PHASES = ('starting', 'training', 'validating', 'saving')
#: Moments at which the writing of a file is interrupted.
CUTS = ('while writing', 'before the rename', 'after the rename')
SIGTERM, FULL = 'SIGTERM', 'full disk'


class State:
    """State of this process, in memory shared with the parent, and the moment at which it kills itself."""

    phase = mmap.mmap(-1, 1)
    record = None
    validations_left = None


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class RecordingHook(Hook):
    """Hook that records the images and values of each iteration, and reports the phase of the process to the parent."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        State.phase[0] = PHASES.index('training')
        names = [Path(sample.img_path).name for sample in data_batch['data_samples']]
        digest = hashlib.md5()
        for image in data_batch['inputs']:
            digest.update(image.numpy().tobytes())
        with open(State.record, 'a') as file:
            file.write(json.dumps([runner.iter, names, digest.hexdigest()]) + '\n')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        State.phase[0] = PHASES.index('validating')
        if State.validations_left is not None:
            State.validations_left -= 1
            if State.validations_left < 0:
                kill_process()


class CutOff:
    """Stand-in for ``os`` and ``open`` where files are written, which kills the process at a given write."""

    def __init__(self, write, cut, size):
        self.writes_left, self.cut, self.size = write, cut, size

    def __getattr__(self, name):
        return getattr(os, name)

    def open_file(self, *args):
        file = open(*args)  # noqa: SIM115
        if self.writes_left == 0 and self.cut == 'while writing':

            def write(data):
                file.write(data[: self.size])
                file.flush()
                kill_process()

            return nullcontext(SimpleNamespace(write=write))
        if self.writes_left == 0 and self.cut == FULL:
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    def replace(self, source, target):
        if self.writes_left == 0 and self.cut == 'before the rename':
            kill_process()
        os.replace(source, target)
        if self.writes_left == 0 and self.cut == 'after the rename':
            kill_process()
        self.writes_left -= 1


def child(config, work_dir, plan):
    """Train in a process of its own; never returns."""
    status = 1
    work_dir.joinpath('output.txt').unlink(missing_ok=True)
    try:
        log = open(work_dir / 'output.txt', 'a')  # noqa: SIM115
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        State.phase[0] = 0
        State.record = work_dir / 'record.jsonl'
        State.validations_left = plan.get('validations')
        if 'write' in plan:
            cut = CutOff(plan['write'], plan['cut'], plan['size'])
            files.os, files.open = cut, cut.open_file
        original = checkpoint.write_atomic

        def write_atomic(path, data):
            State.phase[0] = PHASES.index('saving')
            original(path, data)
            State.phase[0] = PHASES.index('training')

        checkpoint.write_atomic = files.write_atomic = write_atomic
        cfg = load_config(str(config), work_dir=str(work_dir))
        cfg.resume = True
        run.train(cfg)
        status = 0
    except Interrupted as end:
        status = end.code
    except BaseException:
        print(traceback.format_exc())  # this is the process that trains, not the command
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def attempt(config, work_dir, plan):
    """Run one process; return its exit status (-9 after SIGKILL) and its last phase."""
    pid = os.fork()
    if pid == 0:
        child(config, work_dir, plan)
    if 'after' in plan:
        deadline = time.monotonic() + plan['after']
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        os.kill(pid, plan.get('signal', signal.SIGKILL))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), PHASES[State.phase[0]]


def problems_of_checkpoints(work_dir):
    """Yield problems of checkpoints that must not occur, whenever a run was killed."""
    pointer = work_dir / 'last_checkpoint'
    files = sorted(work_dir.glob('*.pth'))
    regular = [path.name for path in files if not path.name.startswith('best_')]
    # A kill may come between the very first checkpoint and the file that names it: resuming finds it without.
    if len(regular) > 1 and not pointer.exists():
        yield f'no last_checkpoint beside {regular}'
    if pointer.exists() and not Path(pointer.read_text()).is_file():
        yield f'last_checkpoint names {pointer.read_text()!r}, which does not exist'
    for path in files:
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            yield str(error)
            continue
        if not path.name.startswith('best_') and not {'state_dict', 'optimizer', 'ema_state_dict'} <= set(content):
            yield f'{path} lacks parts of the training state'


def flatten(node, name=''):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f'{name}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from flatten(value, f'{name}.{index}')
    elif isinstance(node, torch.Tensor):
        yield name, node


def differences(work_dir, reference):
    """Yield how a finished run differs from the uninterrupted one: checkpoints, their tensors, iterations, images."""
    ours, theirs = ({path.name for path in folder.glob('*.pth')} for folder in (work_dir, reference))
    if ours != theirs:
        yield f'checkpoints {sorted(ours)} instead of {sorted(theirs)}'
    for name in sorted(ours & theirs):
        found, wanted = read_checkpoint(work_dir / name), read_checkpoint(reference / name)
        for key in ('epoch', 'iter', 'seed'):
            if found['meta'][key] != wanted['meta'][key]:
                yield f'{name}: {key} {found["meta"][key]} instead of {wanted["meta"][key]}'
        for part in ('state_dict', 'ema_state_dict', 'optimizer'):
            found_tensors, wanted_tensors = (dict(flatten(each.get(part, {}))) for each in (found, wanted))
            if found_tensors.keys() != wanted_tensors.keys():
                yield f'{name}: other names in {part}'
                continue
            different = [key for key, value in wanted_tensors.items() if not torch.equal(found_tensors[key], value)]
            if different:
                largest = max(
                    (found_tensors[key].double() - wanted_tensors[key].double()).abs().max().item() for key in different
                )
                yield f'{name}: {len(different)} tensors of {part} differ, by up to {largest:.3g} ({different[0]})'
    seen, wanted = (
        {tuple(map(str, json.loads(line))) for line in (folder / 'record.jsonl').read_text().splitlines()}
        for folder in (work_dir, reference)
    )
    if seen != wanted:
        strange = sorted(seen ^ wanted, key=lambda row: int(row[0]))[0]
        yield f'{len(seen ^ wanted)} iterations with other images or values, the first: {strange}'


#: Ways to end a run, and how often each is drawn.
KILLS = {'random moment': 4, 'while saving': 3, 'while validating': 3}
WARNINGS = {SIGTERM: 1, FULL: 1}


def plan_end(rng, duration, writes, validations):
    """Draw how the next process ends: one of ``KILLS`` or ``WARNINGS``, and the plan for :func:`attempt`."""
    kinds = {**KILLS, **WARNINGS}
    (kind,) = rng.choices(list(kinds), kinds.values())
    if kind in ('random moment', SIGTERM):
        return kind, dict(after=rng.uniform(0, duration), signal=signal.SIGTERM if kind == SIGTERM else signal.SIGKILL)
    if kind == 'while validating':
        return kind, dict(validations=rng.randrange(validations))
    cut = FULL if kind == FULL else rng.choice(CUTS)
    return kind, dict(write=rng.randrange(writes), cut=cut, size=rng.randrange(1, 30000))


def outcome(kind, status, output):
    """Return what is wrong with the end of a process; ``None`` if it ended as it must."""
    if kind in KILLS:
        return None if status == -signal.SIGKILL else f'status {status}: {output[-1500:]}'
    if kind == SIGTERM:
        # Before training starts there is nothing to save, and SIGTERM does what it always does.
        good = status == -signal.SIGTERM or status == TERMINATED and f'saving {INTERRUPTED}' in output
    else:
        good = status == 1 and 'No space left on device' in output and 'Training ends here.' in output
    return None if good else f'status {status} after {kind}: {output[-1500:]}'


def check(task, kills, per_run, seed, folder, lock):
    """Kill the training of one task until it was killed ``kills`` times; return the counts."""
    rng = random.Random(seed)
    job = TASKS[task]
    data = folder / f'data_{task}'
    generate(job['kind'], data, 10, 4, 64)
    config = folder / f'{task}.py'
    config.write_text(job['config'].format(root=ROOT, data=data))
    reference = folder / task / 'uninterrupted'
    reference.mkdir(parents=True)
    with lock:
        start = time.monotonic()
        status, _ = attempt(config, reference, {})
        duration = time.monotonic() - start
    if status:
        raise UserError(f'the uninterrupted run failed:\n{(reference / "output.txt").read_text()[-3000:]}')

    counts, phases, failures, runs = Counter(), Counter(), [], 0
    while sum(counts[kind] for kind in KILLS) < kills:
        work_dir = folder / task / f'run_{runs}'
        work_dir.mkdir()
        runs += 1
        for _ in range(per_run):
            kind, plan = plan_end(rng, duration, 8, 8)
            with lock:
                status, phase = attempt(config, work_dir, plan)
            if status == 0:
                break  # the process had already ended
            problem = outcome(kind, status, (work_dir / 'output.txt').read_text())
            failures += [f'run {runs}: {problem}'] if problem else []
            counts[kind] += 1
            phases[phase] += 1
            failures += [f'run {runs}, {kind} ({plan}): {text}' for text in problems_of_checkpoints(work_dir)]
            if sum(counts[kind] for kind in KILLS) == kills:
                break
        if status:
            with lock:
                status, _ = attempt(config, work_dir, {})
            if status:
                failures.append(f'run {runs} did not end: {(work_dir / "output.txt").read_text()[-1500:]}')
                continue
        failures += [f'run {runs}: {text}' for text in differences(work_dir, reference)]
        if not failures:
            shutil.rmtree(work_dir)
    return dict(
        kills=sum(counts[kind] for kind in KILLS),
        kinds=dict(counts),
        phases=dict(phases),
        runs=runs,
        failures=failures,
        seconds=round(time.monotonic() - start),
    )


class MachineLock:
    """Lock with which several of these commands take turns of two minutes on one machine (``--lock``)."""

    length = 120

    def __init__(self, path):
        self.file = open(path, 'a') if path else None  # noqa: SIM115
        self.until = None

    def __enter__(self):
        if self.file and self.until is None:
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.until = time.monotonic() + self.length

    def __exit__(self, *_):
        if self.file and time.monotonic() > self.until:
            self.release()

    def release(self):
        if self.file:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.until = None


def table(results):
    """Return the results in Markdown."""
    kinds = [*KILLS, *WARNINGS]
    rows = [['task', 'SIGKILLs', *kinds, 'trainings completed', 'differences']]
    rows.append(['---'] * len(rows[0]))
    for task, found in results.items():
        rows.append(
            [
                task,
                found['kills'],
                *(found['kinds'].get(kind, 0) for kind in kinds),
                found['runs'],
                len(found['failures']),
            ]
        )
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in rows)


def main():
    parser = command_parser(__doc__)
    parser.add_argument('tasks', nargs='*', metavar='TASK', help=f'one or more of {", ".join(TASKS)} (default: all)')
    parser.add_argument('--kills', type=int, default=50, help='number of kills per task (default: %(default)s)')
    parser.add_argument(
        '--per-run', type=int, default=5, help='number of kills before a run may finish (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments of the kills (default: %(default)s)')
    parser.add_argument(
        '--stock', action='store_true', help='without the additions of this package to MMEngine, to show their effect'
    )
    parser.add_argument('--out', type=Path, help='JSON file for the counts')
    parser.add_argument('--lock', type=Path, help='file to lock while processes train, for shared machines')
    args = parser.parse_args()
    lock = MachineLock(args.lock)
    if args.stock:
        run.TRAINING_STEPS = (adapt_to_machine, train_in_float32_on_cpus, select_resume_point)
        KILLS['while saving'] = 0  # which cuts into this package's own writing, like the next two
        WARNINGS.update({SIGTERM: 0, FULL: 0})
    unknown = set(args.tasks) - set(TASKS)
    if unknown:
        raise UserError(f'unknown task {sorted(unknown)[0]!r}, expected some of {list(TASKS)}')
    if args.out:
        files.check_writable(args.out)
    tasks = args.tasks or list(TASKS)
    # A process with everything imported is forked for each run: seconds become tenths.
    torch.set_num_threads(1)
    for task in tasks:
        require(TASKS[task]['package'])
        importlib.import_module(f'{TASKS[task]["package"]}.utils').register_all_modules(init_default_scope=False)
    environment = collect_env()
    runner.collect_env = lambda: environment
    mmengine_config.FormatCode = lambda text, **_: (text, True)  # how a config looks when it is written down
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            results[task] = check(task, args.kills, args.per_run, args.seed, Path(folder), lock)
            print(f'{task}: {json.dumps(results[task], indent=2)}', flush=True)
            if args.out:
                content = dict(
                    python=platform.python_version(),
                    torch=torch.__version__,
                    mmengine=mmengine.__version__,
                    seed=args.seed,
                    tasks=results,
                )
                files.write_atomic(args.out, (json.dumps(content, indent=2) + '\n').encode())
    lock.release()
    print(table(results))
    if any(found['failures'] for found in results.values()):
        sys.exit(1)


if __name__ == '__main__':
    run_command(main)
