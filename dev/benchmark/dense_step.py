"""Time training steps of a detector or segmentor, and their peak memory: our operations beside the reference.

The model is the config's, with random weights and made-up images and annotations. Timed in turn, round after round:
ours (as tools/train.py runs it), reference_channels_last (reference implementations) and reference (the same, the
backbone in NCHW, as the published code runs it).
"""

import argparse
from contextlib import nullcontext
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from command import add_arguments, check_arguments, describe_run, parse_size
from measure import in_child, interleave, peak_growth
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from report import summarize, write_report
from timed_networks import DTYPES, keep_layout

from fcvit_mm.engine.config import load_config, set_pretrained, task_of
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.models.backbone import Backbone
from fcvit_mm.models.layers import count_parameters
from fcvit_mm.ops import use_ops
from fcvit_mm.options import add_config_options


class Way(NamedTuple):
    """A way to run the backbone; see ``Way`` in ``timed_networks.py``."""

    about: str
    ops: str
    keeps_layout: bool


WAYS = {
    'reference': Way(
        'reference implementations, the backbone in NCHW as the published code runs it', 'reference', True
    ),
    'reference_channels_last': Way('reference implementations', 'reference', False),
    'ours': Way('as tools/train.py runs it', 'auto', False),
}


class Task(NamedTuple):
    """The task to time, as values that can be passed to a child process.

    Attributes:
        config (str): The config file.
        options (dict): Changes of the config, as by ``--cfg-options``.
        size (tuple[int, int]): Height and width of the images.
        objects (int): Number of annotated objects per image, for detectors.
    """

    config: str
    options: Dict[str, Any]
    device: str
    dtype: str
    batch: int
    size: Tuple[int, int]
    objects: int
    threads: int


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=list(WAYS))
    parser.add_argument('--batch', type=int, default=2, help='batch size (default: 2)')
    parser.add_argument(
        '--size', metavar='HxW', help='image size in pixels (default: 800x1216 for detectors, 512 for segmentors)'
    )
    parser.add_argument(
        '--objects', type=int, default=8, help='number of objects per image, for detectors (default: 8)'
    )
    add_config_options(parser, 'model.backbone.with_cp=True')
    add_arguments(parser)
    return parser.parse_args(argv)


def make_batch(cfg: Config, task: Task) -> Dict[str, Any]:
    """Make a batch of random images with annotations, as from a data loader; the same each time."""
    rng = np.random.RandomState(0)
    height, width = task.size
    info = dict(img_shape=task.size, ori_shape=task.size, pad_shape=task.size, scale_factor=(1.0, 1.0))
    samples = []
    for index in range(task.batch):
        if cfg.default_scope == 'mmseg':
            from mmengine.structures import PixelData
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=info)
            labels = rng.randint(0, cfg.model.decode_head.num_classes, (1, *task.size))
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels))
        else:
            sample = _annotated(rng, task, dict(info, img_id=index))
        samples.append(sample)
    images = [torch.from_numpy(rng.randint(0, 256, (3, height, width), dtype=np.uint8)) for _ in range(task.batch)]
    return dict(inputs=images, data_samples=samples)


def _annotated(rng: np.random.RandomState, task: Task, info: Dict[str, Any]) -> Any:
    """Make annotations of an image: boxes of an eighth to a half of its sides, and masks that fill them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = task.size
    boxes, masks = [], np.zeros((task.objects, height, width), dtype=np.uint8)
    for mask in masks:
        tall, wide = (rng.randint(side // 8, side // 2) + 1 for side in (height, width))
        top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
        mask[top : top + tall, left : left + wide] = 1
        boxes.append((left, top, left + wide, top + tall))
    sample = DetDataSample(metainfo=info)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        masks=BitmapMasks(masks, height, width),
        labels=torch.zeros(task.objects, dtype=torch.int64),
    )
    return sample


def prepare(name: str, task: Task) -> Tuple[Callable[[], None], int]:
    """Return a function that runs one training step with AdamW, and the model's number of parameters."""
    way, dtype = WAYS[name], DTYPES[task.dtype]
    cfg = _load(task)
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmseg':
        # Segmentors pad to the size of their crops.
        cfg.model.data_preprocessor.size = task.size
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(ConfigDict(cfg.model)))
    if not isinstance(model.backbone, Backbone):
        raise UserError(
            f'{task.config} has the backbone {type(model.backbone).__name__}, expected a backbone of fcvit_mm'
        )
    params = count_parameters(model)
    if way.keeps_layout:
        keep_layout(model.backbone)
    model.to(task.device).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-8)
    data = model.data_preprocessor(make_batch(cfg, task), training=True)
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(torch.device(task.device).type, dtype)

    def call() -> None:
        torch.manual_seed(0)  # so that each step samples the same proposals
        with use_ops(way.ops):
            with autocast:
                loss, _ = model.parse_losses(model(**data, mode='loss'))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call, params


def _load(task: Task) -> Config:
    cfg = load_config(task.config, task.options)
    if task_of(cfg, task.config) == 'classification':
        raise UserError(
            f'{task.config} is for a classifier, expected a detector or segmentor: time classifiers with speed.py '
            '--mode train'
        )
    set_pretrained(cfg, None)
    return cfg


def memory_of(name: str, task: Task) -> int:
    """Measure the peak of a way's second step, in a process of its own: see :func:`measure.in_child`."""
    torch.set_num_threads(task.threads)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    call, _ = prepare(name, task)
    call()
    return peak_growth(call, torch.device(task.device))


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    device = check_arguments(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    if args.objects < 1:
        raise UserError(f'--objects is {args.objects}, expected at least 1')
    task = Task(
        args.config, args.cfg_options or {}, args.device, args.dtype, args.batch, (0, 0), args.objects, args.threads
    )
    default = '800x1216' if _load(task).default_scope == 'mmdet' else '512'
    task = task._replace(size=parse_size(args.size or default))
    found = describe_run(device)
    ways = list(dict.fromkeys(args.ways))
    calls, rows = {}, []
    for name in ways:
        calls[name], params = prepare(name, task)
        rows.append(
            dict(
                label=name,
                kind='ours' if WAYS[name].ops == 'auto' else 'reference',
                way=WAYS[name].about,
                dtype=args.dtype,
                params=params,
            )
        )
    times = interleave(calls, args.rounds, args.warmup, device)
    for row in rows:
        row['times'] = times[row['label']]
        if not args.no_memory:
            row['peak_growth'] = (
                peak_growth(calls[row['label']], device)
                if device.type == 'cuda'
                else in_child(memory_of, row['label'], task)
            )
    summarize(rows, args.batch, ways[:1])
    shape = 'x'.join(map(str, task.size))
    found.update(
        title=f'Training step of {args.config}, batch {args.batch}, {shape}',
        task=task._asdict(),
        rounds=args.rounds,
        warmup=args.warmup,
        repeat=1,
        baselines=ways[:1],
        ceilings=None,
        rows=rows,
        notes=[
            'A step: forward pass, losses, backward pass, AdamW. Lower precision by autocast. '
            'Made-up images and annotations.'
        ],
    )
    print(write_report(found, args.out))
    print(f'written to {args.out}')


if __name__ == '__main__':
    run_command(main)
