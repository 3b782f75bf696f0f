"""Result files: COCO results, segmentation maps, class tables.

The prediction of an image is stored as a JSON record; the records of all images become the files at the end.
"""

import csv
import hashlib
import io
import json
import os.path as osp
from collections import Counter
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ...errors import UserError
from ...files import atomic_path, write_atomic
from ..load import Meta

#: Record of an image: ``id``, ``name``, ``width``, ``height`` and ``found``, which depends on the task; of a skipped
#: image, ``name`` and ``skipped``, the reason.
Record = Dict[str, Any]
#: Function that returns a new iterable over the records of all images, in their order.
Records = Callable[[], Iterable[Record]]


class PredictionError(UserError):
    """Predictions cannot be computed or written as requested."""


def unexpected_prediction(sample: Any, expected: str) -> PredictionError:
    """Build the error for a data sample without the predictions of its task."""
    return PredictionError(
        f'the model predicts {", ".join(sample.keys()) or "nothing"}, expected {expected}: evaluate other predictions, '
        'such as panoptic segmentation maps, with tools/test.py'
    )


class Coco(NamedTuple):
    """Ids of images and classes in COCO files.

    Attributes:
        path (str): The annotation file of the ids; empty for numbers from 1.
        images (dict): Ids by name.
        categories (dict): Ids by class index.
    """

    path: str = ''
    images: Dict[str, int] = {}
    categories: Dict[int, int] = {}

    def image_id(self, number: int, name: str) -> int:
        """Return the id of an image, given by its number (from 0) and its name.

        Raises:
            PredictionError: The file has no image of this name.
        """
        if not self.path:
            return number + 1
        for key in (name, osp.basename(name)):
            if key in self.images:
                return self.images[key]
        raise PredictionError(
            f'--coco {self.path} has no image {name}: give the annotations of these images, or omit --coco to number '
            'the images'
        )

    def check_images(self, names: Iterable[str]) -> None:
        """Raise an error unless each of these images has an id of its own."""
        found: Dict[int, str] = {}
        for number, name in enumerate(names if self.path else ()):
            other = found.setdefault(self.image_id(number, name), name)
            if other != name:
                raise PredictionError(
                    f'--coco {self.path} has one image for both {other} and {name}: give only the images of these '
                    'annotations, or omit --coco to number the images'
                )

    def fingerprint(self) -> Optional[str]:
        """Return a hash of the ids; ``None`` without a file."""
        return hashlib.sha256(ascii((self.images, self.categories)).encode()).hexdigest() if self.path else None

    def category_id(self, index: int) -> int:
        """Return the id of a class."""
        return self.categories[index] if self.path else index + 1


def coco_ids(path: Optional[str], meta: Meta, classes: int) -> Coco:
    """Read the ids of images and categories from COCO annotations, so that results can be evaluated against them.

    Args:
        path (str, optional): The file; ``None``: images and classes are numbered from 1.
        meta (Meta): The model's classes.
        classes (int): Number of classes of the model.

    Raises:
        PredictionError: No such file, no COCO annotations, or a class of the model is missing.
    """
    if path is None:
        return Coco()
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        images = {str(image['file_name']): int(image['id']) for image in content['images']}
        categories = {str(category['name']): int(category['id']) for category in content['categories']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PredictionError(
            f'--coco {path} cannot be read as COCO annotations with images and categories ({type(error).__name__}: '
            f'{error}): give such a file, or omit --coco'
        ) from error
    if len(meta.names) < max(classes, 1):
        raise PredictionError(
            f'--coco {path}: the checkpoint, or else its config, names {len(meta.names)} of {classes} classes of the '
            'model, so categories cannot be matched by name: omit --coco, or correct the number of classes'
        )
    missing = [name for name in meta.names if name not in categories]
    if missing:
        raise PredictionError(
            f'--coco {path} has no category {", ".join(missing[:5])}, expected all classes of the model: give '
            'annotations with its classes, or omit --coco'
        )
    # Images are also found by their name without folders, if it is unique in the file.
    counts = Counter(map(osp.basename, images))
    short = {osp.basename(name): number for name, number in images.items() if counts[osp.basename(name)] == 1}
    return Coco(path, {**short, **images}, {index: categories[name] for index, name in enumerate(meta.names)})


class Classes:
    """Classes and probabilities, the most probable first, as a table.

    Args:
        folder (str): Folder of the output file.
        meta (Meta): The classes.
        top (int): Number of classes written per image; 0 for all.
        table (str): One of :data:`~fcvit_mm.options.TABLES`.
    """

    COLUMNS = ('image', 'rank', 'class_id', 'class', 'probability')

    def __init__(self, folder: str, meta: Meta, top: int, table: str) -> None:
        self.folder, self.meta, self.top, self.table = folder, meta, top, table

    def result_of(self, sample: Any, name: str) -> List[List[float]]:
        """Return classes and probabilities of a sample of mmpretrain, the most probable first."""
        if 'pred_score' not in sample:
            raise unexpected_prediction(sample, 'class scores (pred_score)')
        scores = sample.pred_score.float().cpu().numpy()
        # Of equal scores, the lower class index first.
        order = np.argsort(-scores, kind='stable')[: self.top or None]
        return [[int(index), round(float(scores[index]), 6)] for index in order]

    def finish(self, records: Records) -> List[str]:
        """Write ``predictions.csv`` or ``predictions.parquet``."""
        path = osp.join(self.folder, f'predictions.{self.table}')
        if self.table == 'csv':
            write_table(path, self.COLUMNS, self._rows(records))
        else:
            self._write_parquet(path, records)
        return [path]

    def _rows(self, records: Records) -> Iterator[Tuple[Any, ...]]:
        for record in records():
            for rank, (index, score) in enumerate(record.get('found', ()), 1):
                yield as_valid_text(record['name']), rank, index, self.meta.name(index), score

    def _write_parquet(self, path: str, records: Records) -> None:
        import pyarrow
        from pyarrow import parquet

        types = (pyarrow.string(), pyarrow.int32(), pyarrow.int32(), pyarrow.string(), pyarrow.float64())
        schema = pyarrow.schema(list(zip(self.COLUMNS, types)))
        with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            rows: List[Tuple[Any, ...]] = []
            for row in self._rows(records):
                rows.append(row)
                if len(rows) == 10_000:
                    writer.write_table(pyarrow.table([list(column) for column in zip(*rows)], schema=schema))
                    rows = []
            if rows:
                writer.write_table(pyarrow.table([list(column) for column in zip(*rows)], schema=schema))


class Detections:
    """Boxes and masks, as COCO results and as a COCO data set.

    Args:
        folder (str): Folder of the output files.
        meta (Meta): The classes.
        classes (int): Number of classes of the model.
        coco (Coco): Ids.
        score_thr (float): Minimum score to write.
    """

    def __init__(self, folder: str, meta: Meta, classes: int, coco: Coco, score_thr: float) -> None:
        self.folder, self.meta, self.classes = folder, meta, classes
        self.coco, self.score_thr = coco, score_thr

    def result_of(self, sample: Any, name: str) -> List[Dict[str, Any]]:
        """Return the detections of a sample of mmdet, in its order, with masks run-length encoded."""
        from mmdet.structures.mask import encode_mask_results

        if 'pred_instances' not in sample:
            raise unexpected_prediction(sample, 'boxes (pred_instances)')
        instances = sample.pred_instances
        if instances.bboxes.shape[-1] != 4:
            raise PredictionError(
                f'boxes have {instances.bboxes.shape[-1]} values, expected 4, because COCO has no rotated boxes: '
                'evaluate models of rotated boxes with tools/test.py'
            )
        scores = instances.scores.float().cpu().numpy()
        labels = instances.labels.cpu().numpy()
        boxes = instances.bboxes.float().cpu().numpy()
        masks = instances.masks if 'masks' in instances else None
        found = []
        for index in np.flatnonzero(scores >= self.score_thr):
            left, top, right, bottom = (float(value) for value in boxes[index])
            one: Dict[str, Any] = dict(
                label=int(labels[index]),
                score=round(float(scores[index]), 6),
                bbox=[round(left, 3), round(top, 3), round(right - left, 3), round(bottom - top, 3)],
            )
            if masks is not None:
                mask = masks[index]
                rle = mask if isinstance(mask, dict) else encode_mask_results([np.asarray(mask.cpu())])[0]
                counts = rle['counts']
                one['segmentation'] = dict(
                    size=[int(length) for length in rle['size']],
                    counts=counts.decode() if isinstance(counts, bytes) else counts,
                )
            found.append(one)
        return found

    def finish(self, records: Records) -> List[str]:
        """Write ``results.json``, for pycocotools' ``loadRes``, and ``annotations.json``, a data set."""
        results = osp.join(self.folder, 'results.json')
        _write_json(results, ['[', self._results(records), ']\n'])
        annotations = osp.join(self.folder, 'annotations.json')
        categories = [
            dict(id=self.coco.category_id(index), name=self.meta.name(index), supercategory='')
            for index in range(max(self.classes, len(self.meta.names)))
        ]
        _write_json(
            annotations,
            [
                '{"info": {"description": "predictions"}, "licenses": [], "categories": '
                f'{json.dumps(categories)},\n"images": [',
                (
                    dict(id=record['id'], file_name=record['name'], width=record['width'], height=record['height'])
                    for record in records()
                    if 'found' in record
                ),
                '],\n"annotations": [',
                self._annotations(records),
                ']}\n',
            ],
        )
        return [results, annotations]

    def _results(self, records: Records) -> Iterator[Dict[str, Any]]:
        for record in records():
            for one in record.get('found', ()):
                one = dict(one)
                yield dict(image_id=record['id'], category_id=self.coco.category_id(one.pop('label')), **one)

    def _annotations(self, records: Records) -> Iterator[Dict[str, Any]]:
        number = 0
        for record in records():
            for one in record.get('found', ()):
                number += 1
                polygons, area = _polygons(one)
                yield dict(
                    id=number,
                    image_id=record['id'],
                    category_id=self.coco.category_id(one['label']),
                    bbox=one['bbox'],
                    segmentation=polygons,
                    area=area,
                    iscrowd=0,
                    score=one['score'],
                )


def _polygons(one: Dict[str, Any]) -> Tuple[List[List[float]], float]:
    """Return the polygons of a detection's mask, for annotation tools, and its area; empty without a mask."""
    left, top, width, height = one['bbox']
    if 'segmentation' not in one:
        return [], round(width * height, 3)
    from pycocotools import mask as coder

    rle = dict(one['segmentation'], counts=one['segmentation']['counts'].encode())
    polygons = outlines(coder.decode(rle))
    if not polygons:  # an empty mask
        polygons = [[left, top, left + width, top, left + width, top + height, left, top + height]]
    return polygons, float(coder.area(rle))


def outlines(mask: np.ndarray) -> List[List[float]]:
    """Return the external contours of a mask, along the borders of its pixels.

    Holes of the mask are filled, because COCO polygons cannot represent them.

    Args:
        mask (np.ndarray): ``(H, W)``, 0 and 1.

    Returns:
        list[list[float]]: ``[x, y, x, y, ...]`` of each connected piece.
    """
    import cv2

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # OpenCV's contours pass through the centers of pixels. In a mask enlarged by 2, they show the borders of pixels.
    fine = np.repeat(np.repeat(part, 2, 0), 2, 1).astype(np.uint8)
    found, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for outline in found:
        corners = (outline[:, 0] + 1) // 2 + (columns[0], rows[0])
        corners = corners[(corners != np.roll(corners, 1, 0)).any(1)]
        polygons.append([float(value) for value in corners.reshape(-1)])
    return polygons


class LabelMaps:
    """Segmentation maps of class indices, one PNG file per image.

    Args:
        folder (str): Folder of the output files.
        meta (Meta): The classes.
        classes (int): Number of classes of the model.
        file_name (callable): Function from the name of an image to that of its map, without suffix.
    """

    def __init__(self, folder: str, meta: Meta, classes: int, file_name: Callable[[str], str]) -> None:
        self.folder, self.meta, self.classes, self.file_name = folder, meta, classes, file_name

    @property
    def palette(self) -> np.ndarray:
        """Colors of the classes, ``(256, 3)`` uint8: the data set's; for classes without one, random but fixed."""
        colors = np.random.RandomState(42).randint(0, 256, (256, 3)).astype(np.uint8)
        if self.meta.palette:
            given = np.asarray(self.meta.palette[:256], np.uint8)
            colors[: len(given)] = given
        return colors

    def path(self, name: str) -> str:
        return osp.join(self.folder, 'labels', f'{self.file_name(name)}.png')

    def result_of(self, sample: Any, name: str) -> List[int]:
        """Write the map of a sample of mmseg; return the classes in it."""
        from PIL import Image

        if 'pred_sem_seg' not in sample:
            raise unexpected_prediction(sample, 'a segmentation map (pred_sem_seg)')
        labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        stream = io.BytesIO()
        if self.classes > 256:
            Image.fromarray(labels.astype(np.uint16)).save(stream, 'PNG')
        else:
            image = Image.fromarray(labels.astype(np.uint8), 'L')
            image.putpalette(self.palette.tobytes())
            image.save(stream, 'PNG')
        write_atomic(self.path(name), stream.getvalue())
        return [int(value) for value in np.unique(labels)]

    def finish(self, records: Records) -> List[str]:
        """Write ``labels.csv``, the map of each image, and ``classes.csv``, the class of each label."""
        labels, classes = (osp.join(self.folder, name) for name in ('labels.csv', 'classes.csv'))
        write_table(
            labels,
            ('image', 'labels', 'width', 'height', 'classes'),
            (
                (
                    record['name'],
                    osp.relpath(self.path(record['name']), self.folder),
                    record['width'],
                    record['height'],
                    ' '.join(map(str, record['found'])),
                )
                for record in records()
                if 'found' in record
            ),
        )
        colors = self.palette if self.classes <= 256 else None
        write_table(
            classes,
            ('label', 'class', 'red', 'green', 'blue'),
            (
                (index, self.meta.name(index), *(('', '', '') if colors is None else colors[index].tolist()))
                for index in range(self.classes)
            ),
        )
        return [osp.join(self.folder, 'labels'), labels, classes]


def _write_json(path: str, pieces: Sequence[Any]) -> None:
    """Write a JSON file from pieces: texts are written unchanged, items of iterators with commas in between."""
    with atomic_path(path) as temporary, open(temporary, 'ab') as file:
        for piece in pieces:
            if isinstance(piece, str):
                file.write(piece.encode())
                continue
            for number, item in enumerate(piece):
                file.write((',\n' if number else '').encode() + json.dumps(item).encode())


def as_valid_text(name: str) -> str:
    """Return a file name as valid text: bytes that are not UTF-8 as ``\\udcf6`` and the like."""
    return name.encode('utf-8', 'backslashreplace').decode()


def write_table(path: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file row by row; names that are not UTF-8 are written as by :func:`as_valid_text`."""
    options: Any = dict(encoding='utf-8', errors='backslashreplace', newline='')
    with atomic_path(path) as temporary, open(temporary, 'a', **options) as file:
        # csv quotes only characters of the line terminator, and a name may contain a lone \r.
        lines = SimpleNamespace(write=lambda line: file.write(line[:-2] + '\n'))
        writer = csv.writer(lines, lineterminator='\r\n')
        writer.writerow(columns)
        writer.writerows(rows)
