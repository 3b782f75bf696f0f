"""Images of shapes on cluttered backgrounds, in the layouts of ImageNet, COCO and ADE20K.

They are for trying training, evaluation and drawing without a data set. Every image only depends on the seed, its split
and its index, so the first hundred of a thousand are those of a hundred.
"""

import colorsys
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from ..errors import UserError
from ..files import WriteError, write_atomic
from ..options import DATASET_KINDS as KINDS

#: In the alphabetical order in which mmpretrain numbers the folders of a data set.
CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')
#: File of a complete data set: the arguments it was made with.
MANIFEST = 'shapes.json'

# Raised when the same arguments make other images than before.
VERSION = 1
# Images are drawn this much larger, then reduced: smooth edges, and outlines finer than a pixel.
SUPERSAMPLE = 2
MIN_SIZE = 64


class FolderInUseError(UserError, FileExistsError):
    """A folder contains files that were not generated here."""


class Scene(NamedTuple):
    """Drawn image with its shapes.

    Attributes:
        image (np.ndarray): ``(size, size, 3)`` uint8, BGR.
        instances (np.ndarray): ``(SUPERSAMPLE * size,) * 2`` int32: 0 for background, ``i + 1`` for shape ``i``
            where nothing covers it.
        labels (list[int]): Index into ``CLASSES`` of each shape.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: List[int]


def generate(
    kind: str,
    root: Union[str, Path],
    num_train: Optional[int] = None,
    num_val: Optional[int] = None,
    size: Optional[int] = None,
    seed: int = 0,
) -> bool:
    """Write a data set of shapes, unless the same one already exists.

    It is written beside ``root`` under a temporary name and takes its place when it is complete. A data set of shapes
    that was made with other arguments is replaced; any other folder stays as it is.

    Args:
        kind (str): ``'imagenet'``: ``{train,val}/CLASS/*.jpg``. ``'coco'``: ``{train,val}2017/*.jpg`` and
            ``annotations/instances_{train,val}2017.json`` with boxes and polygons. ``'ade20k'``:
            ``images/{training,validation}/*.jpg`` and ``annotations/{training,validation}/*.png``, where 0 is what
            nothing is learned from (outlines), 1 the background and ``2 + i`` the class ``CLASSES[i]``.
        root (str | Path): The data set's folder.
        num_train (int, optional): Images to train on. Default: see ``KINDS``, as for the next two.
        num_val (int, optional): Images held out.
        size (int, optional): Side of the square images, in pixels.
        seed (int): Other seeds give other images.

    Returns:
        bool: Whether anything was written; ``False`` if it was there already.

    Raises:
        UserError: An unknown kind, or a number too small.
        FolderInUseError: ``root`` holds something that was not generated here.
        WriteError: The disk is full, permission is missing, ...
    """
    if kind not in KINDS:
        raise UserError(f'unknown kind {kind!r}, expected one of {list(KINDS)}')
    given = dict(num_train=num_train, num_val=num_val, size=size)
    arguments = {**KINDS[kind], **{key: int(value) for key, value in given.items() if value is not None}}
    for key, least in (('num_train', 1), ('num_val', 1), ('size', MIN_SIZE)):
        if arguments[key] < least:
            raise UserError(f'{key} is {arguments[key]}, expected {least} or more')
    if seed < 0:
        raise UserError(f'seed is {seed}, expected 0 or more')
    wanted = dict(kind=kind, **arguments, seed=int(seed), version=VERSION)

    root = Path(root)
    if read_manifest(root) == wanted:
        return False
    if root.exists() and read_manifest(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise FolderInUseError(
            f'{root} exists and is not a generated data set (it has no {MANIFEST}): give another folder, or move it '
            'away'
        )
    try:
        _write(root, wanted)
    except OSError as error:
        raise WriteError(
            f'{root} could not be written: {error.strerror or error}: free disk space, or give another folder'
        ) from error
    return True


def _write(root: Path, wanted: Dict[str, Any]) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{root.name}.', suffix='.partial', dir=root.parent))
    try:
        partial.chmod(0o755)
        write = dict(imagenet=write_imagenet, coco=write_coco, ade20k=write_ade20k)[wanted['kind']]
        for split, number in (('train', wanted['num_train']), ('val', wanted['num_val'])):
            write(partial, split, number, wanted['size'], wanted['seed'])
        write_atomic(partial / MANIFEST, (json.dumps(wanted, indent=2) + '\n').encode())
        replace_folder(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_manifest(root: Union[str, Path]) -> Optional[dict]:
    """Return the arguments that the data set in ``root`` was made with; ``None`` if none was completed there."""
    try:
        manifest = json.loads((Path(root) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get('kind') in KINDS else None


def replace_folder(source: Path, target: Path) -> None:
    """Replace ``target``, which may exist, by ``source``; at no time does a partial folder exist."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', suffix='.old', dir=target.parent))
        os.replace(target, old / 'it')
        os.replace(source, target)
        shutil.rmtree(old)
    else:
        os.replace(source, target)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write an image by OpenCV, which only returns ``False`` if it cannot.

    Not atomic: the complete folder is replaced atomically instead, because thousands of ``fsync`` calls take minutes.
    """
    import cv2

    if not cv2.imwrite(str(path), image):
        raise WriteError(f'{path} could not be written: free disk space, or give another folder')


def write_imagenet(root: Path, split: str, number: int, size: int, seed: int) -> None:
    """Write one shape per image, the classes in turn."""
    for name in CLASSES:
        (root / split / name).mkdir(parents=True)
    for index in range(number):
        label = index % len(CLASSES)
        scene = draw_scene(image_rng(seed, split, index), size, [label], radius=(0.22, 0.42))
        _write_image(root / split / CLASSES[label] / f'{index:06d}.jpg', scene.image)


def write_coco(root: Path, split: str, number: int, size: int, seed: int) -> None:
    """Write two to five shapes per image, with boxes and polygons of what is visible of each."""
    folder = root / f'{split}2017'
    folder.mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    images: List[dict] = []
    annotations: List[dict] = []
    for index in range(number):
        scene = draw_many(image_rng(seed, split, index), size)
        name = f'{index:012d}.jpg'
        _write_image(folder / name, scene.image)
        images.append(dict(id=index + 1, file_name=name, height=size, width=size))
        for i, label in enumerate(scene.labels):
            polygons = outline(scene.instances == i + 1)
            points = np.concatenate(polygons) / SUPERSAMPLE
            low, high = points.min(0), points.max(0)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=label + 1,
                    segmentation=[np.round(polygon / SUPERSAMPLE, 2).ravel().tolist() for polygon in polygons],
                    bbox=np.round([*low, *(high - low)], 2).tolist(),
                    area=round(sum(polygon_area(polygon) for polygon in polygons) / SUPERSAMPLE**2, 2),
                    iscrowd=0,
                )
            )
    categories = [dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(CLASSES)]
    content = dict(
        info=dict(description='Generated images of shapes'),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )
    write_atomic(root / 'annotations' / f'instances_{split}2017.json', json.dumps(content).encode())


def write_ade20k(root: Path, split: str, number: int, size: int, seed: int) -> None:
    """Write two to five shapes per image, with a map of classes."""
    split_folder = dict(train='training', val='validation')[split]
    for part in ('images', 'annotations'):
        (root / part / split_folder).mkdir(parents=True)
    for index in range(number):
        scene = draw_many(image_rng(seed, split, index), size)
        _write_image(root / 'images' / split_folder / f'{index:08d}.jpg', scene.image)
        _write_image(root / 'annotations' / split_folder / f'{index:08d}.png', class_map(scene))


def class_map(scene: Scene) -> np.ndarray:
    """Return ADE20K's map of a scene: ``(size, size)`` uint8; 0 on outlines, 1 for background, 2 and on for shapes."""
    values = np.array([1, *(label + 2 for label in scene.labels)], np.uint8)
    fine = values[scene.instances]
    size = len(fine) // SUPERSAMPLE
    blocks = scene.instances.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
    mixed = blocks.min((1, 3)) != blocks.max((1, 3))
    return np.where(mixed, 0, fine[::SUPERSAMPLE, ::SUPERSAMPLE]).astype(np.uint8)


def image_rng(seed: int, split: str, index: int) -> 'np.random.Generator':
    """Build the random numbers of one image."""
    return np.random.default_rng([seed, ('train', 'val').index(split), index])


def draw_many(rng: 'np.random.Generator', size: int) -> Scene:
    """Draw two to five small shapes."""
    labels = rng.integers(len(CLASSES), size=rng.integers(2, 6)).tolist()
    return draw_scene(rng, size, labels, radius=(0.09, 0.22))


def draw_scene(rng: 'np.random.Generator', size: int, labels: List[int], radius: Tuple[float, float]) -> Scene:
    """Draw shapes, later ones over earlier ones, on a cluttered background.

    A shape that would leave too little of another is moved, and skipped if no place is found.

    Args:
        rng (np.random.Generator): Source of all random numbers.
        size (int): Side of the image.
        labels (list[int]): Classes to draw, at least one.
        radius (tuple[float, float]): Least and greatest radius of a shape, as a part of ``size``.

    Returns:
        Scene: A scene with at least one shape: those for which there was room.
    """
    import cv2

    side = SUPERSAMPLE * size
    canvas = draw_background(rng, side)
    instances = np.zeros((side, side), np.int32)
    sizes: List[int] = []
    drawn: List[int] = []
    for label in labels:
        for _ in range(20):
            polygon = place_polygon(rng, label, side, radius)
            filled = np.zeros((side, side), np.uint8)
            cv2.fillPoly(filled, [polygon], 1)
            left, top, width, height = cv2.boundingRect(filled)
            window = np.s_[top : top + height, left : left + width]
            inside = filled[window].astype(bool)
            covered = [int(i) for i in np.unique(instances[window][inside]) if i]
            after = instances.copy()
            after[window][inside] = len(drawn) + 1
            masks = {i: after == i for i in [*covered, len(drawn) + 1]}
            areas = [*sizes, np.count_nonzero(inside)]
            if any(np.count_nonzero(mask) < 0.6 * areas[i - 1] or not outline(mask) for i, mask in masks.items()):
                continue
            paint_shape(rng, canvas, label, window, inside, polygon)
            instances = after
            sizes = areas
            drawn.append(label)
            break
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 9))
    return Scene(np.clip(image + noise, 0, 255).astype(np.uint8), instances, drawn)


def outline(mask: np.ndarray) -> List[np.ndarray]:
    """Return polygons around a mask, in its own pixels, edges (not centres) being integers.

    Args:
        mask (np.ndarray): ``(H, W)`` bool.

    Returns:
        list[np.ndarray]: One ``(points, 2)`` array per part. Empty if polygons cannot tell it: a part with a hole,
        or one too small.
    """
    import cv2

    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[-2:]
    if hierarchy is None or (hierarchy[0, :, 3] >= 0).any():
        return []
    # Contours run through the centres of the outermost pixels: half a pixel inwards, which SUPERSAMPLE makes small.
    polygons = [cv2.approxPolyDP(contour, 0.7, True)[:, 0] + 0.5 for contour in contours]
    least = (4 * SUPERSAMPLE) ** 2
    return polygons if all(polygon_area(polygon) >= least for polygon in polygons) else []


def polygon_area(polygon: np.ndarray) -> float:
    """Return the area inside ``(points, 2)``, by the shoelace formula."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def unit_polygon(label: int) -> np.ndarray:
    """Return the class's shape within the unit circle: ``(points, 2)``."""
    name = CLASSES[label]
    if name == 'cross':
        a = 0.33
        return np.array(
            [(a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a), (-a, -1), (a, -1), (a, -a), (1, -a), (1, a)]
        )
    corners, inner = dict(circle=(64, 1), square=(4, 1), star=(10, 0.45), triangle=(3, 1))[name]
    angles = 2 * math.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, inner, 1)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def place_polygon(rng: 'np.random.Generator', label: int, side: int, radius: Tuple[float, float]) -> np.ndarray:
    """Return a class's shape, stretched, rotated and moved: ``(points, 2)`` int32. A little may stick out."""
    r = rng.uniform(*radius) * side
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    stretch = rng.uniform(0.8, 1, size=2)
    centre = rng.uniform(0.85 * r, side - 0.85 * r, size=2)
    return np.round(unit_polygon(label) * stretch @ turn.T * r + centre).astype(np.int32)


def random_color(rng: 'np.random.Generator') -> np.ndarray:
    """Return a muted color: shapes are more colorful than their background."""
    color = rng.uniform(20, 236, size=3)
    return (color + color.mean()) / 2


def shape_color(rng: 'np.random.Generator', label: int) -> np.ndarray:
    """Return a saturated color from the hues of a class, so that a network learns the classes in a few minutes."""
    hue = (label + 0.5) / len(CLASSES) + rng.normal(0, 0.03)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.55, 1), rng.uniform(0.5, 1)))[::-1] * 255


def draw_background(rng: 'np.random.Generator', side: int) -> np.ndarray:
    """Draw soft colors, then strokes, rings and dots in front: ``(side, side, 3)`` uint8."""
    import cv2

    first, last = random_color(rng), random_color(rng)
    coarse = first + np.linspace(0, 1, 6)[:, None, None] * (last - first)
    coarse = np.clip(coarse + rng.normal(0, 12, size=(6, 6, 3)), 0, 255).astype(np.uint8)
    canvas = cv2.resize(np.rot90(coarse, int(rng.integers(4))), (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(6, 19)):
        color = random_color(rng).tolist()
        (x, y), (dx, dy) = rng.integers(0, side, size=2).tolist(), rng.integers(-side // 2, side // 2, size=2).tolist()
        thick = max(1, round(rng.uniform(0.004, 0.014) * side))
        what = rng.integers(3)
        if what == 0:
            cv2.line(canvas, (x, y), (x + dx, y + dy), color, thick, cv2.LINE_AA)
        elif what == 1:
            start = int(rng.integers(360))
            cv2.ellipse(
                canvas,
                (x, y),
                (abs(dx) // 2 + 3, abs(dy) // 2 + 3),
                int(rng.integers(180)),
                start,
                start + int(rng.integers(40, 200)),
                color,
                thick,
                cv2.LINE_AA,
            )
        else:
            cv2.circle(canvas, (x, y), 2 * thick, color, -1, cv2.LINE_AA)
    return canvas


def paint_shape(
    rng: 'np.random.Generator', canvas: np.ndarray, label: int, window: tuple, inside: np.ndarray, polygon: np.ndarray
) -> None:
    """Fill ``canvas[window][inside]`` with a color that stands out and a pattern of a second one."""
    import cv2

    target = canvas[window]
    behind = target[inside].mean(0)
    color = shape_color(rng, label)
    for _ in range(20):
        if np.abs(color - behind).sum() > 150:
            break
        color = shape_color(rng, label)
    second = np.clip(color * rng.uniform(0.55, 0.85) + rng.normal(0, 10, size=3), 0, 255)
    y, x = np.nonzero(inside)
    angle = rng.uniform(0, math.pi)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(0.18, 0.4) * max(inside.shape)
    pattern = rng.integers(5)
    if pattern == 0:
        blend = np.zeros(len(x))
    elif pattern == 1:
        blend = along % period < period / 2
    elif pattern == 2:
        blend = (along % period < period / 2) ^ (across % period < period / 2)
    elif pattern == 3:
        blend = np.hypot(along % period - period / 2, across % period - period / 2) < period / 3.4
    else:
        blend = (along - along.min()) / max(float(np.ptp(along)), 1)
    target[inside] = (color + (second - color) * blend[:, None]).astype(np.uint8)
    if rng.random() < 0.4:
        cv2.polylines(canvas, [polygon], True, (0.5 * second).tolist(), max(1, len(canvas) // 200), cv2.LINE_AA)
