"""Time the preflight checks on a generated data set of COCO's size: 118287 images with about 860,000 objects, and 5000.

    python dev/time_preflight.py FOLDER

generates the data set in FOLDER, unless it exists: annotation files as long as COCO's, and links to one image.
"""

import json
import os
import time
from pathlib import Path
from typing import Dict, List

import numpy as np
from mmengine.config import Config
from PIL import Image

from fcvit_mm.engine.config import load_config
from fcvit_mm.errors import command_parser, run_command
from fcvit_mm.files import atomic_path
from fcvit_mm.preflight.checks import PreflightError, data_problems
from fcvit_mm.preflight.limits import TimeLimit

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs' / 'detection' / 'mask_rcnn_fcvit_tiny_coco.py'
#: COCO's numbers of categories, objects an image and points of a mask's outline.
CATEGORIES, OBJECTS, POINTS = 80, 7.27, 25
WIDTH, HEIGHT = 640, 480


def object_of(number: int, image: int, random: np.random.Generator) -> Dict[str, object]:
    """Make one annotation: a box with an outline of points."""
    x, y = random.integers(0, WIDTH - 120), random.integers(0, HEIGHT - 120)
    w, h = random.integers(4, 119, 2)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outline = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1)
    return dict(
        id=number,
        image_id=image,
        category_id=int(random.integers(1, CATEGORIES + 1)),
        bbox=[float(x), float(y), float(w), float(h)],
        area=float(w * h),
        iscrowd=0,
        segmentation=[outline.round(2).reshape(-1).tolist()],
    )


def generate(folder: Path, split: str, images: int, names: List[str]) -> None:
    """Write links to one image, and then the annotation file of a split."""
    path = folder / 'annotations' / f'instances_{split}2017.json'
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    place = folder / f'{split}2017'
    place.mkdir(exist_ok=True)
    image = folder / 'image.jpg'
    random = np.random.default_rng(0)
    if not image.exists():
        with atomic_path(image) as temporary:
            Image.fromarray(random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(temporary, 'JPEG')
    for number in range(images):
        link = place / f'{number:012}.jpg'
        if not link.is_symlink():
            os.symlink(os.path.relpath(image, place), link)
    last = 0
    # Line by line, because as Python objects it would need gigabytes.
    with atomic_path(path) as temporary, open(temporary, 'a', encoding='utf-8') as file:
        file.write('{"annotations": [\n')
        for number in range(images):
            for _ in range(random.poisson(OBJECTS)):
                file.write(',\n' * bool(last) + json.dumps(object_of(last + 1, number, random)))
                last += 1
        rows = [dict(id=number, file_name=f'{number:012}.jpg', width=WIDTH, height=HEIGHT) for number in range(images)]
        categories = [dict(id=place, name=name) for place, name in enumerate(names, 1)]
        file.write(f'],\n"images": {json.dumps(rows)},\n"categories": {json.dumps(categories)}}}\n')


def measure(cfg: Config) -> Dict[str, float]:
    """Check the data sets of a config; return the total seconds, and those for building the data sets."""
    limit, start = TimeLimit(), time.monotonic()
    problems = data_problems(cfg, ['train_dataloader', 'val_dataloader'], limit)
    seconds = time.monotonic() - start
    if problems:
        raise PreflightError(problems)
    return dict(seconds=round(seconds, 1), building=round(limit.paused, 1))


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument('folder', type=Path, help='folder of the data set, which is generated if missing')
    parser.add_argument(
        '--images',
        type=int,
        nargs=2,
        default=(118287, 5000),
        help='numbers of training and validation images (default: %(default)s)',
    )
    args = parser.parse_args()
    cfg = load_config(str(CONFIG))
    with_classes = [f'class{number}' for number in range(CATEGORIES)]
    for split, images in zip(('train', 'val'), args.images):
        generate(args.folder, split, images, with_classes)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{args.folder}/'
        loader.dataset.metainfo = dict(classes=with_classes)
    cfg.val_evaluator.ann_file = str(args.folder / 'annotations' / 'instances_val2017.json')
    found = measure(cfg)
    print(
        f'{args.images[0]} + {args.images[1]} images: {found["seconds"]} s, {found["building"]} s of them for building '
        f'the data sets, {found["seconds"] - found["building"]:.1f} s for the checks'
    )


if __name__ == '__main__':
    run_command(main)
