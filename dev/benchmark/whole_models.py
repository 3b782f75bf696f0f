"""Time the predictions of complete detectors and segmentors, by component: stock models beside ours.

Each config is timed as built, in channels_last with BatchNorms fused by mmcv (which users of the library can do without
this package), and after fcvit_mm.optimize_for_inference: all in turn, round after round, on random images, with random
weights that find objects. The way "compiled" is the second one with the networks' forward methods compiled by
torch.compile with freezing. CPU time of all threads is reported beside wall-clock time, because only CPU time is
comparable on a shared machine.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
import torch.nn as nn
from command import parse_size
from mmengine.config import Config
from mmengine.utils import get_installed_path
from timed_networks import let_compile_all

import fcvit_mm
from fcvit_mm.apis.load import build_model
from fcvit_mm.engine.config import load_config, set_pretrained, task_of
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import check_writable, write_atomic


def fused(model: nn.Module) -> nn.Module:
    """Fuse BatchNorms with mmcv's function, and convert the weights to channels_last."""
    from mmcv.cnn.utils import fuse_conv_bn

    return fuse_conv_bn(model).to(memory_format=torch.channels_last)


def compiled(model: nn.Module) -> nn.Module:
    """Compile the forward methods of :data:`COMPILED`, with weights as constants, in :func:`fused`."""
    model = fused(model)
    let_compile_all(freeze=True)
    for name in COMPILED:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        object.__setattr__(module, 'forward', torch.compile(module.forward))
    return model


#: Modules whose forward methods can be compiled: those without post-processing.
COMPILED = ('backbone', 'neck', 'rpn_head', 'bbox_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'decode_head')
WAYS: Dict[str, Callable[[nn.Module], nn.Module]] = {
    'as_built': lambda model: model,
    'channels_last_fused': fused,
    'compiled': compiled,
    'optimized': fcvit_mm.optimize_for_inference,
}
#: Component -> its module, if a model has it, and the method of the module that is timed.
PARTS = {
    'detection': {
        'backbone': ('backbone', 'forward'),
        'neck': ('neck', 'forward'),
        'rpn': ('rpn_head', 'predict'),
        'dense head': ('bbox_head', 'predict'),
        'regions of boxes': ('roi_head.bbox_roi_extractor', 'forward'),
        'box head': ('roi_head.bbox_head', 'forward'),
        'boxes': ('roi_head.bbox_head', 'predict_by_feat'),
        'regions of masks': ('roi_head.mask_roi_extractor', 'forward'),
        'mask head': ('roi_head.mask_head', 'forward'),
        'masks': ('roi_head.mask_head', 'predict_by_feat'),
    },
    'segmentation': {'backbone': ('backbone', 'forward'), 'head': ('decode_head', 'forward')},
}
#: Standard deviation of initial weights by the end of their names, so that random detectors find a hundred objects.
SPREAD = {
    'rpn_cls.weight': 0.02,
    'rpn_reg.weight': 0.004,
    'fc_cls.weight': 0.05,
    'fc_reg.weight': 0.01,
    'retina_reg.weight': 0.004,
}
#: Mean and deviation of the logits of heads that score every position, so that about a thousand positions are
#: candidates, as in a trained head.
LOGITS = {'retina_cls': (-4.6, 0.45)}
_DRAWN = ('neck', 'rpn_conv', 'shared_fcs', 'mask_head', 'cls_convs', 'reg_convs')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        'configs', nargs='+', help='config files of detectors or segmentors; configs of a library as mmdet::FOLDER/FILE'
    )
    parser.add_argument('--ways', nargs='+', default=[way for way in WAYS if way != 'compiled'], choices=list(WAYS))
    parser.add_argument('--size', default='512x512', metavar='HxW', help='image size (default: 512x512)')
    parser.add_argument(
        '--rounds', type=int, default=5, help='number of timing rounds; all models are timed in turn (default: 5)'
    )
    parser.add_argument('--threads', type=int, default=1, help='number of PyTorch threads (default: 1)')
    parser.add_argument('--out', type=Path, required=True, help='JSON file for the results')
    return parser.parse_args(argv)


def build(cfg: Config) -> nn.Module:
    """Build a config's model with random weights, the same each time, that find something."""
    backbone = cfg.model.get('backbone', {})
    if backbone.get('init_cfg'):
        set_pretrained(cfg, None)
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        spread = next((value for end, value in SPREAD.items() if name.endswith(end)), None)
        if spread is not None:
            nn.init.normal_(parameter, std=spread)
        elif parameter.ndim > 1 and any(part in name for part in _DRAWN):
            nn.init.kaiming_normal_(parameter)
    return model


@torch.no_grad()
def spread_logits(model: nn.Module, images: torch.Tensor) -> None:
    """Scale the layers of :data:`LOGITS` by what they return for these images."""
    for name, layer in model.named_modules():
        mean, spread = LOGITS.get(name.rpartition('.')[2], (0.0, 0.0))
        if spread:
            nn.init.constant_(layer.bias, mean)  # type: ignore[arg-type]
            found: List[torch.Tensor] = []
            with layer.register_forward_hook(lambda module, args, output, found=found: found.append(output)):
                model(images)
            layer.weight.mul_(spread / found[0].std())  # type: ignore[operator, union-attr]


class Row:
    """A model in one way, and the times of its predictions.

    Args:
        label (str): Config and way.
        model (nn.Module): The model.
        task (str): A key of :data:`PARTS`.
    """

    def __init__(self, label: str, model: nn.Module, task: str) -> None:
        self.label, self.model, self.task = label, model, task
        self.rounds: List[Dict[str, float]] = []
        self.current: Dict[str, float] = defaultdict(float)
        for part, (name, method) in PARTS[task].items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                continue
            self._time(part, module, method)

    def _time(self, part: str, module: nn.Module, method: str) -> None:
        inner = getattr(module, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            result = inner(*args, **kwargs)
            self.current[part] += time.process_time() - begin
            return result

        object.__setattr__(module, method, timed)

    def run(self, images: torch.Tensor) -> int:
        """Predict once; return how many objects were found."""
        size = tuple(images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
        sample: Any
        if self.task == 'detection':
            from mmdet.structures import DetDataSample

            sample = DetDataSample(metainfo=meta)
        else:
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
        self.current = defaultdict(float)
        clock, begin = time.perf_counter(), time.process_time()
        with torch.no_grad():
            (found,) = self.model.predict(images, [sample])  # type: ignore[operator]
        self.current['total'] = time.process_time() - begin
        self.current['clock'] = time.perf_counter() - clock
        return len(found.pred_instances) if self.task == 'detection' else 0

    def medians(self) -> Dict[str, float]:
        return {part: float(np.median([each[part] for each in self.rounds])) for part in self.rounds[0]}


def path_of(config: str) -> str:
    """Return the file of a config, which may be given as a config of a library, ``mmdet::FOLDER/FILE``."""
    library, _, name = config.rpartition('::')
    return str(Path(get_installed_path(library), '.mim', 'configs', name)) if library else config


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    check_writable(args.out)
    torch.set_num_threads(args.threads)
    height, width = parse_size(args.size)
    rows, objects = [], {}
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    for path in map(path_of, args.configs):
        for way in args.ways:
            cfg = load_config(path)
            task = task_of(cfg)
            if task not in PARTS:
                raise UserError(f'{path} is for {task}, expected a detector or segmentor')
            model = build(cfg)
            spread_logits(model.eval(), images)
            rows.append(Row(f'{Path(path).stem}, {way}', WAYS[way](model), task))
    for row in rows:
        objects[row.label] = row.run(images.contiguous(memory_format=_layout(row)))
    for _ in range(args.rounds):
        for row in rows:
            row.run(images.contiguous(memory_format=_layout(row)))
            row.rounds.append(dict(row.current))
        results = {row.label: dict(objects=objects[row.label], rounds=row.rounds) for row in rows}
        found = dict(arguments=vars(args), rows=results)
        write_atomic(args.out, json.dumps(found, indent=1, default=str).encode())  # after each round
    print(_table(rows, objects))


def _layout(row: Row) -> torch.memory_format:
    return torch.channels_last if row.label.endswith(('fused', 'compiled')) else torch.contiguous_format


def _table(rows: Sequence[Row], objects: Dict[str, int]) -> str:
    parts = list(dict.fromkeys(part for row in rows for part in row.rounds[0]))
    parts.sort(key=lambda part: part in ('total', 'clock'))
    lines = [
        '| | ' + ' | '.join(parts) + ' | objects | ratio of each row to the last |',
        '|---' * (len(parts) + 3) + '|',
    ]
    for row in rows:
        ratios = [one['total'] / last['total'] for one, last in zip(row.rounds, rows[-1].rounds)]
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        medians = row.medians()
        cells = [f'{medians[part]:.3f}' if part in medians else '' for part in parts]
        lines.append(
            f'| {row.label} | {" | ".join(cells)} | {objects[row.label]} | {middle:.2f} ({low:.2f} to {high:.2f}) |'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    run_command(main)
