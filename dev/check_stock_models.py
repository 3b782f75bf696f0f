"""Test the unmodified stock models of mmdet and mmseg: build with random weights, predict, train a step.

Models run on the CPU, on random images of 128x128 pixels with few proposals and queries; those that fail are tried
again with the size and the numbers of the config, with at most 640x640 pixels. Failures are classified: an operator
that mmcv lacks without its compiled build, a missing package or download, inputs that an image data set does not have,
time.
--pretended-gpu finds code that mixes tensors of the CPU and of a GPU, without a GPU; --compare finds models whose
results differ from those in another environment, such as one with a compiled mmcv.
"""

import argparse
import collections
import contextlib
import copy
import gc
import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement

from fcvit_mm.apis.load import build_model
from fcvit_mm.apis.random_batch import BATCH, random_batch
from fcvit_mm.apis.step import SIZES, scope_of_library, without_downloads
from fcvit_mm.apis.stock import LIBRARIES, find_stock
from fcvit_mm.engine.config import type_name, walk
from fcvit_mm.errors import UserError, command_parser, origin, run_command
from fcvit_mm.mmcv_ext import MMCVOperatorError

#: Parts of the names of configs of small models, in order of preference: each folder's first match is tried.
SMALL = ('r18', 'r-18', 'b0', 'tiny', '_s_', '-s_', 'nano', 'r50', 'r-50', '-t_', 'base', '')
#: Largest side of images, in pixels.
LARGEST = 640
#: Inputs of semi-supervised models, a batch of each: images with labels, and two views of images without.
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')
#: Modules that the worker processes import before their first config.
PRELOAD = ['torch', 'fcvit_mm', 'mmdet.apis', 'mmseg.apis']
#: Largest relative difference of two environments.
TOLERANCE = 1e-3
#: Memory limit of the process of a config in bytes.
MEMORY = 10 << 30
#: Types of errors of models that need a package or a file that is not on the machine.
MISSING = (ImportError, OSError)


class Result(NamedTuple):
    """Outcome of a config.

    Attributes:
        config (str): ``'mmdet::folder/name.py'``.
        predicts (str): ``'yes'``, or why it does not.
        trains (str): The same for a training step: empty if it was not tried.
        kind (str): Kind of the first failure (:func:`kind_of`); empty if there was none.
        seconds (float): Total time.
        side (int): Side of the images in pixels.
        values (list[float]): Sum of the absolute values of the predictions; loss, and sum of squares of the gradients.
    """

    config: str
    predicts: str = ''
    trains: str = ''
    kind: str = ''
    seconds: float = 0.0
    side: int = 0
    values: Sequence[float] = ()


def first_of_folders(library: str, start: str = '') -> Iterator[str]:
    """Yield one config of each folder of a library, from the folder ``start`` on: of the smallest models."""
    root = Path(str(importlib.util.find_spec(library).submodule_search_locations[0])) / '.mim' / 'configs'
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('_')):
        configs = sorted(path.name for path in folder.glob('*.py'))
        if configs and folder.name >= start:
            name = next(name for part in SMALL for name in configs if part in name)
            yield f'{library}::{folder.name}/{name}'


def kind_of(error: BaseException) -> str:
    """Return the kind of a failure, from the first error in its chain of causes."""
    chain: List[BaseException] = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    if any(isinstance(each, MMCVOperatorError) for each in chain):
        return 'operator'
    if any(isinstance(each, MemoryError) for each in chain):
        return 'memory'
    if any(isinstance(each, MISSING) or 'pip install' in str(each) for each in chain):
        return 'package or download'
    return 'other'


def try_config(config: str, training: bool = True, on_gpu: bool = False) -> Result:
    """Build the model of a config, let it predict and take a training step, in this process.

    Args:
        config (str): ``'mmdet::folder/name.py'``.
        training (bool): Whether it takes a training step.
        on_gpu (bool): Whether the model is on the pretended GPU of ``tests/pretended_gpu.py``.
    """
    start = time.perf_counter()
    try:
        cfg = Config.fromfile(find_stock(config))
        if not cfg.get('model'):
            raise UserError('no model: a part of other configs')
        cfg.setdefault('default_scope', config.partition('::')[0])
        found = attempt(cfg, SIZES[0], SIZES[0], training, on_gpu)
        if found.get('kind') == 'other':
            found = attempt(cfg, side_of(cfg), None, training, on_gpu)
    except Exception as error:
        # Broad, as below: the failure, whatever it is, is the result.
        found = dict(predicts=describe_error(error), kind=kind_of(error))
    return Result(config, **found, seconds=round(time.perf_counter() - start, 1))


def attempt(cfg: Config, side: int, size: Optional[int], training: bool = True, on_gpu: bool = False) -> Dict[str, Any]:
    """Test a config's model on images of ``side`` pixels; return fields of :class:`Result`.

    Args:
        cfg (Config): A config whose model is made for small images (:func:`build_random`) unless ``size`` is ``None``.
        side (int): Side of the images.
        size (int, optional): Image size that the model is made for.
        training (bool): See :func:`try_config`.
        on_gpu (bool): See :func:`try_config`.
    """
    found: Dict[str, Any] = dict(side=side, values=[])
    with scope_of_library(cfg):
        try:
            model: Any = build_random(cfg, size)
        except Exception as error:
            return dict(predicts=describe_error(error), kind=kind_of(error))
        for key, action in (('predicts', predict), ('trains', train))[: 1 + training]:
            try:
                with pretended_gpu() if on_gpu else contextlib.nullcontext('cpu') as device:
                    torch.manual_seed(0)
                    np.random.seed(0)
                    found['values'] += action(model.to(device), cfg, side)
                found[key] = 'yes'
            except Exception as error:
                found[key] = describe_error(error)
                found.setdefault('kind', kind_of(error))
    return found


def pretended_gpu() -> ContextManager[torch.device]:
    """Return the context in which the tests pretend that there is a GPU."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
    from pretended_gpu import pretended_gpu as pretend  # type: ignore[import-not-found]

    context: ContextManager[torch.device] = pretend()
    return context


def side_of(cfg: Config) -> int:
    """Return the side of the images that a config's model is made for, in pixels: of a segmentor's crop."""
    size = (cfg.model.get('data_preprocessor') or {}).get('size') or (LARGEST,)
    return min(max(size), LARGEST)


def build_random(cfg: Config, size: Optional[int]) -> torch.nn.Module:
    """Build a config's model with random weights; with ``size``, for small images of that side."""
    torch.manual_seed(0)
    small = without_downloads(cfg, size)
    for node in walk(small.model):
        if type_name(node) == 'TIMMBackbone':
            node['pretrained'] = False
    with process_group():
        model: Any = build_model(small)
    with contextlib.suppress(AttributeError):  # SAN's text encoder has none but its checkpoint's: PyTorch's own stay
        model.init_weights()
    return model


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Make this process a group of its own, which mmcv's MMSyncBN asks for when it is built.

    The group only exists while the model is built, because PyTorch's SyncBatchNorm, within a group, refuses to train on
    a CPU.
    """
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def predict(model: Any, cfg: Config, size: int) -> List[float]:
    """Let a model predict on random images; return the sum of the absolute values of the predictions.

    Raises:
        UserError: The number of predictions is wrong.
    """
    batch = batch_for(cfg, size)
    with torch.no_grad():
        samples = model.eval().test_step(batch)
    if len(samples) != len(batch['data_samples']):
        raise UserError(f'{len(samples)} predictions for {len(batch["data_samples"])} images')
    return [absolute_sum(samples)]


def absolute_sum(x: Any) -> float:
    """Return the sum of the absolute values of tensors in lists and data samples, without those that are not finite."""
    if isinstance(x, torch.Tensor):
        return float(x.detach().double().abs().nan_to_num(posinf=0).sum())
    if isinstance(x, BaseDataElement):
        return sum(map(absolute_sum, x.values()))
    return sum(map(absolute_sum, x)) if isinstance(x, (list, tuple)) else 0.0


def train(model: Any, cfg: Config, size: int) -> List[float]:
    """Let a model compute a loss on random images, and its gradients; return the loss and their sum of squares.

    Raises:
        UserError: A loss is not finite.
    """
    data = model.train().data_preprocessor(batch_for(cfg, size, training=True), True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    bad = [name for name, value in losses.items() if not torch.isfinite(torch.as_tensor(value)).all()]
    if bad:
        raise UserError(f'not finite: {", ".join(bad)}')
    gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    return [float(loss), sum(float(gradient.double().square().sum()) for gradient in gradients)]


def batch_for(cfg: Config, size: int, training: bool = False) -> Dict[str, Any]:
    """Make a batch as a model expects it: images, or videos of two frames for those that track.

    Args:
        cfg (Config): Config of the model.
        size (int): Side of the images in pixels.
        training (bool): Semi-supervised models are trained on :data:`BRANCHES`, each of the same images.
    """
    batch = random_batch(cfg, size)
    if cfg.default_scope != 'mmdet':
        return batch
    from mmengine.structures import InstanceData

    for number, sample in enumerate(batch['data_samples']):
        boxes = sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor  # trackers do not convert them
        if type_name(cfg.model) == 'FastRCNN':  # other models would use them instead of their own proposals
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
        sample.text = 'a cat . a dog'
        sample.custom_entities = False
        sample.gt_instances.instances_ids = torch.arange(len(boxes))
        sample.set_metainfo(
            dict(frame_id=number, ori_video_length=BATCH, homography_matrix=np.eye(3, dtype=np.float32))
        )
    preprocessor = type_name(cfg.model.get('data_preprocessor'))
    if preprocessor == 'MultiBranchDataPreprocessor' and training:
        return {key: {branch: copy.deepcopy(value) for branch in BRANCHES} for key, value in batch.items()}
    if preprocessor == 'TrackDataPreprocessor':
        from mmdet.structures import TrackDataSample

        video = TrackDataSample(video_data_samples=batch['data_samples'])
        video.set_metainfo(dict(key_frames_inds=[0], ref_frames_inds=[1], ori_length=BATCH))
        return dict(inputs=[torch.stack(batch['inputs'])], data_samples=[video])
    return batch


def describe_error(error: BaseException) -> str:
    """Return an error as one line."""
    kind, message, _ = origin(error)
    return ' '.join(f'{kind}: {message}'.split())[:300]


class Worker:
    """A process that tests configs one after the other; it is replaced if it ends or exceeds the time limit.

    Args:
        seconds (float): Time limit per config.
        training (bool): Whether models take a training step too.
        on_gpu (bool): Whether they are on a pretended GPU.
    """

    def __init__(self, seconds: float, training: bool, on_gpu: bool = False) -> None:
        self.seconds, self.training, self.on_gpu = seconds, training, on_gpu
        self.context = multiprocessing.get_context('forkserver')
        self.context.set_forkserver_preload(PRELOAD)
        self.process: Any = None

    def try_config(self, config: str) -> Result:
        """Return the outcome of a config."""
        if self.process is None:
            self.pipe, other = self.context.Pipe()
            self.process = self.context.Process(target=_work, args=(other, self.training, self.on_gpu))
            self.process.start()
            other.close()
        self.pipe.send(config)
        try:
            if self.pipe.poll(self.seconds):
                result: Result = self.pipe.recv()
                return result
            result = Result(config, f'not finished in {self.seconds:g} seconds', kind='time', seconds=self.seconds)
        except EOFError:
            result = Result(config, 'its process ended without a result', kind='memory')
        self.end()
        return result

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _work(pipe: Any, training: bool, on_gpu: bool) -> None:
    torch.set_num_threads(1)
    os.environ['HF_HUB_OFFLINE'] = '1'
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    MMLogger.get_instance('mmengine', log_level='ERROR')
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(try_config(pipe.recv(), training, on_gpu))
            gc.collect()


def summary(results: Sequence[Result]) -> str:
    """Return how many configs of each library predicted and trained, and what stopped the others."""
    lines = []
    for library in LIBRARIES:
        own = [result for result in results if result.config.startswith(f'{library}::')]
        if not own:
            continue
        counts = collections.Counter(result.kind for result in own if result.kind)
        lines.append(
            f'{library}: of {len(own)} configs {sum(result.predicts == "yes" for result in own)} predicted, '
            f'{sum(result.trains == "yes" for result in own)} trained a step; stopped by '
            + (', '.join(f'{kind}: {count}' for kind, count in sorted(counts.items())) or 'nothing')
        )
    return '\n'.join(lines)


def compare(results: Sequence[Result], others: Sequence[Result]) -> str:
    """Compare the values of the same configs for images of the same size; return the largest relative difference.

    Raises:
        UserError: The difference is above :data:`TOLERANCE`.
    """
    expected = {result.config: result for result in others}
    differences = {}
    for result in results:
        other = expected.get(result.config, Result(result.config))
        if result.values and (result.side, len(result.values)) == (other.side, len(other.values)):
            pairs = zip(result.values, other.values)
            differences[result.config] = max(abs(a - b) / max(abs(b), 1e-6) for a, b in pairs)
    wrong = [f'{config} ({value:.1e})' for config, value in differences.items() if value > TOLERANCE]
    if wrong:
        raise UserError(
            f'compared: {len(differences)} configs, {len(wrong)} differ by more than {TOLERANCE:g} (relative): '
            f'{", ".join(wrong)}'
        )
    return (
        f'compared: {len(differences)} configs, largest relative difference {max(differences.values(), default=0):.1e}'
    )


def read_log(path: Path) -> List[Result]:
    """Read a file that ``--log`` wrote."""
    return [Result(**json.loads(line)) for line in path.read_text(encoding='utf-8').splitlines()]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Test configs, and write a line of JSON for each.

    Raises:
        UserError: A model needs an operator of mmcv that is missing.
    """
    parser = command_parser(__doc__)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='configs to test, such as mmdet::atss/atss_r50_fpn_1x_coco.py'
    )
    parser.add_argument(
        '--library', dest='source', choices=LIBRARIES, help='test one config of each folder of this library'
    )
    parser.add_argument('--start', default='', metavar='FOLDER', help='start with this folder')
    parser.add_argument(
        '--log',
        type=Path,
        metavar='FILE',
        help='append the results to this file and skip the configs it already contains',
    )
    parser.add_argument(
        '--timeout', type=float, default=180, metavar='SECONDS', help='time limit per config (default: %(default)g)'
    )
    parser.add_argument('--predict-only', action='store_true', help='only predict, without a training step')
    parser.add_argument('--compare', type=Path, metavar='FILE', help='compare the values with those of this log')
    parser.add_argument('--pretended-gpu', action='store_true', help='put models on a GPU that the tests pretend')
    args: argparse.Namespace = parser.parse_args(argv)
    configs = list(args.configs) + (list(first_of_folders(args.source, args.start)) if args.source else [])
    if not configs:
        raise UserError('nothing to test: give configs, or a library with --library')
    results = []
    if args.log and args.log.is_file():
        results = read_log(args.log)
    worker = Worker(args.timeout, not args.predict_only, args.pretended_gpu)
    for config in configs:
        if any(config == result.config for result in results):
            continue
        results.append(worker.try_config(config))
        line = json.dumps(results[-1]._asdict())
        print(line, flush=True)
        if args.log:
            with args.log.open('a', encoding='utf-8') as file:
                file.write(f'{line}\n')
    worker.end()
    print(summary(results))
    if args.compare:
        print(compare(results, read_log(args.compare)))
    missing = [result.config for result in results if result.kind == 'operator']
    if missing:
        raise UserError(f'an operator of mmcv is missing for {", ".join(missing)}')


if __name__ == '__main__':
    run_command(main)
