"""Compare the training pipeline of a classifier's config with mmpretrain's own transforms and with timm's.

It measures the images per second of each on one core, in turn, and compares the samples of the first two: with the same
seeds value by value, and with different seeds by statistics. It ends with status 1 if the statistics differ by more
than chance.
"""

import argparse
import random
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

import fcvit_mm  # noqa: F401
from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.images import list_images
from fcvit_mm.preflight.data_speed import one_thread

#: Faster transforms, and the ones that they replace.
STOCK = {'FastRandAugment': 'RandAugment', 'FastRandomErasing': 'RandomErasing', 'FastRandomFlip': 'RandomFlip'}
#: Level that one in a thousand comparisons exceeds by chance, in standard deviations: of the difference of two samples'
#: distributions (Kolmogorov-Smirnov), and of two shares.
KS_LEVEL, SHARE_LEVEL = 1.95, 3.29
#: Number of draws below which these levels do not hold.
FEW = 50


def stock_pipeline(pipeline: Sequence[dict]) -> List[dict]:
    """Return a config's training pipeline with mmpretrain's transforms in place of the faster ones."""
    found = []
    for step in pipeline:
        step = dict(step)
        if step['type'] == 'ChannelsFirst':
            continue
        if step['type'] == 'FastRandomResizedCrop':
            names = step.pop('interpolation', 'bilinear')
            crops = [
                [dict(step, type='RandomResizedCrop', backend='pillow', interpolation=name)]
                for name in ([names] if isinstance(names, str) else names)
            ]
            step = dict(type='RandomChoice', transforms=crops) if len(crops) > 1 else crops[0][0]
        step['type'] = STOCK.get(step['type'], step['type'])
        found.append(step)
    return found


def seed(number: int) -> None:
    """Seed the random number generators of the transforms."""
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)


def sample(path: str) -> Dict[str, Any]:
    return dict(img_path=path, gt_label=0, sample_idx=0)


def inner(steps: Sequence[Any]) -> List[Any]:
    """Return the steps of a pipeline and those inside them."""
    found = []
    for step in steps:
        nested = getattr(step, 'transforms', None)
        found += [step] if nested is None else [step, *inner(list(nested))]
    return found


class Recorder:
    """Recorder of the random numbers that the transforms of a pipeline draw for an image.

    Args:
        steps (list): Transforms of the pipeline.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self.drawn: Dict[str, List[float]] = {}
        for step in inner(steps):
            name = type(step).__name__.replace('Fast', '') + getattr(step, 'direction', '')[:1] * hasattr(step, 'prob')
            for method, keep in (
                ('rand_crop_params', self.keep_crop),
                ('random_patch', self.keep_patch),
                ('random_disable', lambda name, found, args: self.keep(f'{name} happens', not found)),
                ('random_magnitude', lambda name, found, args: self.keep(f'{name} magnitude', found)),
                ('_choose_direction', lambda name, found, args: self.keep('flip happens', found is not None)),
            ):
                if hasattr(step, method):
                    setattr(step, method, self.recording(getattr(step, method), keep, name))

    def recording(self, draw: Callable[..., Any], keep: Callable[..., None], name: str) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            found = draw(*args)
            keep(name, found, args)
            return found

        return recorded

    def keep(self, name: str, value: float) -> None:
        self.drawn.setdefault(name, []).append(float(value))

    def keep_crop(self, name: str, found: Any, args: Any) -> None:
        top, left, height, width = found
        rows, columns = args[0].shape[:2]
        self.keep('crop area', height * width / (rows * columns))
        self.keep('crop aspect', np.log(width / height))
        self.keep('crop centre x', (left + width / 2) / columns)
        self.keep('crop centre y', (top + height / 2) / rows)

    def keep_patch(self, name: str, found: Any, args: Any) -> None:
        top, left, height, width = found
        self.keep('erased area', height * width / (args[0] * args[1]))
        self.keep('erased aspect', np.log(height / width))
        self.keep('erased centre', (left + width / 2) / args[1])


def statistics(pipeline: Sequence[dict], images: Sequence[str], number: int, first_seed: int) -> Dict[str, np.ndarray]:
    """Run a pipeline; return its random draws, and mean and standard deviation of each channel of its images."""
    compose = Compose(pipeline)
    recorder = Recorder(compose.transforms)
    for index in range(number):
        seed(first_seed + index)
        made = compose(sample(images[index % len(images)]))['inputs'].numpy().reshape(3, -1)
        for channel, values in zip('BGR', made):
            mean, deviation = cv2.meanStdDev(values)
            recorder.keep(f'{channel} mean', mean.item())
            recorder.keep(f'{channel} deviation', deviation.item())
    return {name: np.array(values) for name, values in recorder.drawn.items()}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two samples' cumulative distributions (Kolmogorov-Smirnov)."""
    values = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(each), values, side='right') / len(each) for each in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def compare(ours: Dict[str, np.ndarray], stock: Dict[str, np.ndarray]) -> List[tuple]:
    """Compare the statistics of two pipelines.

    Args:
        ours (dict[str, np.ndarray]): Draws by name, from :func:`statistics`.
        stock (dict[str, np.ndarray]): The same of the other pipeline.

    Returns:
        list[tuple]: Name, number of our draws, both means, difference, and tolerance, which one in a thousand
        comparisons exceeds by chance. The difference is NaN for too few draws.
    """
    rows = []
    for name in sorted({*ours, *stock}):
        one, other = (each.get(name, np.empty(0)) for each in (ours, stock))
        if min(len(one), len(other)) < FEW:
            means = (each.mean() if len(each) else np.nan for each in (one, other))
            rows.append((name, len(one), *means, 1.0 if max(len(one), len(other)) >= 4 * FEW else np.nan, 0.0))
            continue
        spread = (1 / len(one) + 1 / len(other)) ** 0.5
        if name.endswith('happens'):
            share = (one.sum() + other.sum()) / (len(one) + len(other))
            found, allowed = abs(one.mean() - other.mean()), SHARE_LEVEL * spread * (share * (1 - share)) ** 0.5
        else:
            found, allowed = distance(one, other), KS_LEVEL * spread
        rows.append((name, len(one), one.mean(), other.mean(), found, allowed))
    return rows


def same_seed(ours: Sequence[dict], stock: Sequence[dict], images: Sequence[str], number: int) -> Dict[str, float]:
    """Compare two pipelines with the same seeds, without erasing: fractions of values that differ, and by how much."""
    both = [Compose([step for step in each if 'Erasing' not in step['type']]) for each in (ours, stock)]
    differing, total = np.zeros(256), 0
    for index in range(number):
        made = []
        for compose in both:
            seed(index)
            made.append(compose(sample(images[index % len(images)]))['inputs'].numpy())
        differences = cv2.absdiff(made[0].ravel(), made[1].ravel())
        differing += np.bincount(differences.ravel(), minlength=256)
        total += differences.size
    shares = differing / total
    mean = float((shares * np.arange(256)).sum())
    return dict(differ=1 - shares[0], more_than_one=shares[2:].sum(), mean=mean)


def timm_pipeline(erases: bool) -> Callable[[str], Any]:
    """Build timm's training transforms of the same recipe.

    Args:
        erases (bool): Also normalize and erase, as without timm's prefetcher, which does both on the GPU.
    """
    from PIL import Image
    from timm.data import create_transform

    change = create_transform(
        224,
        is_training=True,
        auto_augment='rand-m9-mstd0.5-inc1',
        interpolation='random',
        re_prob=0.25,
        re_mode='pixel',
        use_prefetcher=not erases,
    )

    def make(path: str) -> Any:
        with open(path, 'rb') as file:
            return change(Image.open(file).convert('RGB'))

    return make


def measure(
    makers: Dict[str, Callable[[str], Any]], images: Sequence[str], number: int, rounds: int
) -> Dict[str, float]:
    """Return the median CPU time per image of each pipeline in milliseconds, all timed in turn."""
    times: Dict[str, List[float]] = {name: [] for name in makers}
    for each in range(rounds + 1):
        for name, make in makers.items():
            begin = time.process_time()
            for index in range(number):
                seed(each * number + index)
                make(images[(each * number + index) % len(images)])
            times[name].append((time.process_time() - begin) / number * 1e3)
    return {name: float(np.median(found[1:])) for name, found in times.items()}  # the first warms up


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config of a classifier')
    parser.add_argument('images', help='folder of images, searched recursively')
    parser.add_argument(
        '--samples', type=int, default=10_000, help='number of samples for the statistics (default: %(default)s)'
    )
    parser.add_argument('--rounds', type=int, default=9, help='number of timing rounds (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=200, help='number of images per round (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    images = list_images(args.images)
    if not images:
        raise UserError(f'no images below {args.images}: give a folder of images')
    with one_thread(), DefaultScope.overwrite_default_scope('mmpretrain'):
        report(args, images)


def report(args: argparse.Namespace, images: List[str]) -> None:
    """Measure and compare, and print both.

    Raises:
        UserError: The pipelines differ by more than chance.
    """
    ours = [dict(step) for step in Config.fromfile(args.config).train_dataloader.dataset.pipeline]
    stock = stock_pipeline(ours)
    own, library = Compose(ours), Compose(stock)
    makers = {
        'config': lambda path: own(sample(path)),
        "mmpretrain's transforms": lambda path: library(sample(path)),
        'timm, without normalizing and erasing': timm_pipeline(False),
        'timm': timm_pipeline(True),
    }
    found = measure(makers, images, args.batch, args.rounds)
    print('| pipeline | ms per image | images/s per core | config / this |\n|---|---|---|---|')
    for name, each in found.items():
        print(f'| {name} | {each:.2f} | {1e3 / each:.0f} | {each / found["config"]:.2f} |')
    paired = same_seed(ours, stock, images, max(1, args.samples // 10))
    print(
        f'\nFrom the same seeds, without erasing: {paired["differ"]:.2%} of all values differ, '
        f'{paired["more_than_one"]:.3%} by more than one; the mean difference is {paired["mean"]:.4f} of 255.\n'
    )
    rows = compare(statistics(ours, images, args.samples, 0), statistics(stock, images, args.samples, args.samples))
    print('| statistic | samples | mean | mean of mmpretrain | difference | tolerance |\n|---|---|---|---|---|---|')
    for name, number, one, other, difference, allowed in rows:
        compared = 'too few samples | ' if np.isnan(difference) else f'{difference:.4f} | {allowed:.4f}'
        print(f'| {name} | {number} | {one:.4f} | {other:.4f} | {compared} |')
    wrong = [name for name, *_, difference, allowed in rows if difference > allowed]
    if wrong:
        raise UserError(f'{", ".join(wrong)} differ from mmpretrain beyond chance (p = 0.001 each)')


if __name__ == '__main__':
    run_command(main)
