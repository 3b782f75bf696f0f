"""Try everything on generated images: pretrain FCViT-tiny, then detect or segment with it, evaluate, draw.

Prints the commands that it runs; they can be run by hand. When it runs again, complete steps are skipped.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from command_line import UserError, command_parser, run_command

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = dict(config='classification/fcvit_tiny_shapes.py', kind='imagenet', metrics={'accuracy/top1': 'top-1 (%)'})
JOBS = {
    'detect': dict(
        package='mmdet',
        config='detection/mask_rcnn_fcvit_tiny_shapes.py',
        kind='coco',
        metrics={'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP_50': 'mask AP50'},
        least=0.5,
        options=[],
    ),
    'segment': dict(
        package='mmseg',
        config='segmentation/upernet_fcvit_tiny_shapes.py',
        kind='ade20k',
        metrics={'mIoU': 'mIoU (%)'},
        least=40,
        options=['default_hooks.visualization.interval=1'],
    ),
}
#: Beginnings of the log lines that show progress.
PROGRESS = ('Epoch(', 'Iter(', 'ERROR', 'Error')
SHEET_ROWS = 4


def echo(text=''):
    print(text, flush=True)


def warn_of_busy_cores():
    """Print how to train if other programs use the cores, because PyTorch's threads then wait for each other."""
    if 'OMP_NUM_THREADS' in os.environ or not hasattr(os, 'getloadavg'):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        echo(
            f'{load:.0f} processes or threads compete for {cores} cores: if training is slow, stop and run the same '
            'command with OMP_NUM_THREADS=1 in the environment. It continues where it stopped'
        )


def read_json(path):
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path, content):
    from fcvit_mm.files import write_atomic

    write_atomic(path, (json.dumps(content, indent=2) + '\n').encode())


def run_step(title, folder, inputs, action, force):
    """Run ``action(resume)`` unless ``folder`` holds its result for the same inputs.

    Args:
        title (str): Title printed for the reader.
        folder (Path): Folder of the step; emptied unless an interrupted run with the same inputs can be resumed.
        inputs (dict): All that the result depends on.
        action (callable): The step; returns a dict with ``files``, the paths that must exist for it to count as done.
        force (bool): Run it again in any case.

    Returns:
        dict: Result of ``action``, and the ``fingerprint`` of the inputs.
    """
    from fcvit_mm import __version__

    fingerprint = hashlib.sha256(json.dumps([__version__, inputs], sort_keys=True, default=str).encode()).hexdigest()
    done, started = read_json(folder / 'done.json'), read_json(folder / 'started.json')
    if not force and done.get('fingerprint') == fingerprint and all(Path(path).exists() for path in done['files']):
        echo(f'== {title}: already there ({folder})')
        return done
    echo(f'== {title}')
    resume = not force and not done and started.get('fingerprint') == fingerprint
    if not resume:
        if folder.exists() and not (done or started) and any(folder.iterdir()):
            raise UserError(f'{folder} contains files that the demo did not write: give another folder with --out')
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'started.json', dict(fingerprint=fingerprint))
    start = time.time()
    done = dict(action(resume), fingerprint=fingerprint, seconds=round(time.time() - start))
    write_json(folder / 'done.json', done)
    return done


def run_tool(log, tool, *arguments):
    """Run a tool as a user does: print the command and its progress; all of its output goes to ``log``."""
    command = [f'tools/{tool}', *map(str, arguments)]
    echo(f'   $ python {shlex.join(command)}')
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]))
    lines = []
    with (
        open(log, 'a') as file,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                if any(word in line for word in PROGRESS):
                    echo('   ' + line.rstrip().split(' - INFO - ')[-1][:150])
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise UserError(f'{tool} failed with status {process.returncode}; the end of {log}:\n' + ''.join(lines[-25:]))


def find_metrics(folder, names):
    """Return the latest value of each metric in the logs that MMEngine wrote below ``folder``."""
    found = {}
    for path in sorted(folder.rglob('*.json'), key=lambda path: path.stat().st_mtime):
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                found.update({name: values[name] for name in names if name in values})
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f'the logs in {folder} contain no {missing}: run again with --force')
    return found


def train(title, job, folder, inputs, options, force):
    """Train one config with tools/train.py; return its checkpoint and metrics."""
    from mmengine.config import Config

    config = ROOT / 'configs' / job['config']
    cfg = Config.fromfile(config)

    def action(resume):
        arguments = [os.path.relpath(config), '--work-dir', folder]
        if resume:
            arguments.append('--resume')
        if options:
            arguments += ['--cfg-options', *options]
        run_tool(folder / 'train.log', 'train.py', *arguments)
        checkpoint = (folder / 'last_checkpoint').read_text().strip()
        return dict(files=[checkpoint], checkpoint=checkpoint, metrics=find_metrics(folder, job['metrics']))

    return run_step(title, folder, dict(inputs, config=cfg.to_dict(), options=options), action, force)


def test(title, job, folder, trained, force):
    """Evaluate with tools/test.py on the held-out images, and draw them beside the ground truth."""
    config = ROOT / 'configs' / job['config']

    def action(resume):
        arguments = [
            os.path.relpath(config),
            trained['checkpoint'],
            '--work-dir',
            folder,
            '--show-dir',
            folder / 'images',
        ]
        if job['options']:
            arguments += ['--cfg-options', *job['options']]
        run_tool(folder / 'test.log', 'test.py', *arguments)
        sheet = folder / 'predictions.png'
        draw_sheet(folder / 'images', sheet)
        return dict(files=[str(sheet)], metrics=find_metrics(folder, job['metrics']))

    return run_step(title, folder, dict(trained=trained['fingerprint']), action, force)


def draw_sheet(folder, target):
    """Put the first drawn images (ground truth left, prediction right) on one sheet, two in a row, under titles."""
    import cv2
    import numpy as np

    from fcvit_mm.files import write_atomic
    from fcvit_mm.images import find_images, read_image

    images = [read_image(path)[..., ::-1] for path in find_images(folder, recursive=True)[: 2 * SHEET_ROWS]]
    height, width = images[0].shape[:2]
    title = np.full((22, width, 3), 255, np.uint8)
    for text, left in (('ground truth', 6), ('prediction', width // 2 + 6)):
        cv2.putText(title, text, (left, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    if len(images) % 2:
        images.append(np.full_like(images[0], 255))
    gap = np.full((height, 8, 3), 255, np.uint8)
    rows = [np.hstack([images[i], gap, images[i + 1]]) for i in range(0, len(images), 2)]
    sheet = np.vstack([np.hstack([title, gap[:22], title]), *rows])
    write_atomic(target, cv2.imencode('.png', sheet)[1].tobytes())


def parse_args(argv=None):
    parser = command_parser(__doc__)
    parser.add_argument('job', choices=list(JOBS), help='what to train after pretraining: Mask R-CNN or UperNet')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/demo'), help='folder for the results (default: %(default)s)'
    )
    parser.add_argument(
        '--data',
        type=Path,
        help='folder for the generated images (default: data/shapes, or data/shapes-quick with --quick)',
    )
    parser.add_argument('--force', action='store_true', help='repeat all steps, also completed ones')
    parser.add_argument(
        '--quick',
        action='store_true',
        help='use few images and iterations: shows that everything runs, without checking the results',
    )
    return parser.parse_args(argv)


def main(args):
    from fcvit_mm.datasets import generate
    from fcvit_mm.datasets.shapes import read_manifest
    from fcvit_mm.dependencies import require

    job = JOBS[args.job]
    for package in ('mmpretrain', job['package']):
        require(package)

    warn_of_busy_cores()
    start = time.time()
    few = dict(num_train=16, num_val=6, size=64) if args.quick else {}
    # By default the folder in the configs; --quick has its own, so that its few images do not replace the data set.
    parent = args.data or Path('data') / ('shapes-quick' if args.quick else 'shapes')
    data = {kind: parent / kind for kind in ('imagenet', job['kind'])}
    for kind, folder in data.items():
        echo(f'== Images for {kind}: {"written" if generate(kind, folder, **few) else "already there"} ({folder})')

    short = {
        'imagenet': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
        'coco': ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
        'ade20k': ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2'],
    }
    where = {kind: data_options(kind, folder) if args.quick or args.data else [] for kind, folder in data.items()}
    job = dict(job, options=job['options'] + where[job['kind']])
    options = {kind: where[kind] + (short[kind] if args.quick else []) for kind in data}

    pretrained = train(
        'Pretrain FCViT-tiny as a classifier (mmpretrain)',
        PRETRAIN,
        args.out / 'pretrain',
        dict(data=read_manifest(data['imagenet'])),
        options['imagenet'],
        args.force,
    )
    trained = train(
        f'Train with that backbone ({job["package"]})',
        job,
        args.out / f'{args.job}_train',
        dict(data=read_manifest(data[job['kind']]), pretrained=pretrained['fingerprint']),
        [f'pretrained={pretrained["checkpoint"]}', *options[job['kind']]],
        args.force,
    )
    tested = test('Evaluate on held-out images and draw them', job, args.out / f'{args.job}_test', trained, args.force)

    echo(f'\n{"held out":<14}{"result":>8}{"at least":>10}')
    for key, name in PRETRAIN['metrics'].items():
        echo(f'{name:<14}{pretrained["metrics"][key]:>8.3g}')
    for key, name in job['metrics'].items():
        echo(f'{name:<14}{tested["metrics"][key]:>8.3g}{job["least"]:>10.3g}')
    echo(f'checkpoints   {pretrained["checkpoint"]}\n              {trained["checkpoint"]}')
    echo(f'images      {tested["files"][0]}\n              {args.out / f"{args.job}_test" / "images"}')
    echo(f'logs          {args.out}/*/*.log\ntime          {time.time() - start:.0f} s')
    low = [name for key, name in job['metrics'].items() if tested['metrics'][key] < job['least']]
    if low and not args.quick:
        raise UserError(
            f'{", ".join(low)} below {job["least"]}, so training does not work in this environment: '
            f'see the logs below {args.out}, and run the tests (make test)'
        )


def data_options(kind, folder):
    """Return ``--cfg-options`` that replace the data set of a config."""
    slash = '/' if kind == 'coco' else ''
    options = [f'{loader}_dataloader.dataset.data_root={folder}{slash}' for loader in ('train', 'val', 'test')]
    if kind == 'coco':
        ann_file = folder / 'annotations' / 'instances_val2017.json'
        options += [f'{part}_evaluator.ann_file={ann_file}' for part in ('val', 'test')]
    return options


if __name__ == '__main__':
    run_command(main, parse_args)
