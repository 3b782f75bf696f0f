"""Data sets for classification: folders of classes, lists of images, labels."""

import os
import os.path as osp
from typing import Any, List, Optional, Sequence

import numpy as np
from mmengine.fileio import list_from_file

from ...images import list_images
from ..limits import TimeLimit, remark, shorten
from .images import skipped_images, suffixes_of


def list_file_problems(ann_file: str) -> List[str]:
    """Find the lines without image and label in a list file of mmpretrain."""
    lines = [line.strip() for line in list_from_file(ann_file)]
    wrong = [
        number
        for number, line in enumerate(lines, 1)
        if not line.rpartition(' ')[0] or not line.rpartition(' ')[2].lstrip('+-').isdigit()
    ]
    return (
        [
            f'{ann_file}: {len(wrong)} of {len(lines)} lines are empty or have no label (lines {shorten(wrong)}): '
            'expected "path label" with an integer label per line; remove the others'
        ]
        if wrong
        else []
    )


def folder_problems(dataset: Any, folder: str, limit: TimeLimit) -> List[str]:
    """Check the class folders of a classification data set."""
    folders = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    hidden = [name for name in folders if name.startswith('.') or name == '__MACOSX']
    if hidden:
        return [
            f'{folder}: the folder {shorten(hidden)} is not a class but counts as one: remove it (rm -r '
            f'{osp.join(folder, hidden[0])})'
        ]
    classes = dataset.metainfo.get('classes')
    if not dataset.data_list and not list_images(folder, dataset.extensions):
        found = suffixes_of(skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit))
        but = f', but images that end in {found}: set extensions of the data set, or convert them' if found else ''
        return [f'no images ({", ".join(sorted(dataset.extensions))}) below {folder}{but}']
    if classes is not None and len(classes) != len(folders):
        return [
            f'{folder} has {len(folders)} folders ({shorten(folders)}), one per class, but {type(dataset).__name__} '
            f'has {len(classes)} classes: set metainfo=dict(classes=[...]) of the data set, or use type '
            'CustomDataset, which takes the class names from the folders'
        ]
    if classes is not None and sorted(classes) == sorted(folders) and tuple(classes) != folders:
        return [
            f'metainfo.classes ({shorten(classes)}) is in another order than the folders in {folder} '
            f'({shorten(folders)}), whose labels follow their sorted names: use that order'
        ]
    skipped = skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit)
    if skipped and dataset.data_list:
        remark(
            f'{len(skipped)} images below {folder} end in {suffixes_of(skipped)} ({skipped[0]}) and are skipped, '
            f'because the data set has extensions={tuple(sorted(dataset.extensions))}: set extensions of the data set, '
            'or convert the images'
        )
    return []


def label_table(infos: Sequence[dict]) -> np.ndarray:
    """Return the labels in a list of data: an array ``(N, 2)`` of places in the list and labels."""
    labels = [info.get('gt_label') for info in infos]
    if all(isinstance(each, int) for each in labels):
        return np.stack([np.arange(len(labels)), np.asarray(labels, int)], 1)
    rows = [
        (place, label)
        for place, each in enumerate(labels)
        if each is not None
        for label in np.atleast_1d(np.asarray(each, int))
    ]
    return np.asarray(rows, int).reshape(-1, 2)


def label_type_problems(dataset: Any, where: str) -> List[str]:
    """Check that the labels of a data set for classification are numbers."""
    for info in dataset.data_list:
        labels = info.get('gt_label')
        for label in labels if isinstance(labels, (list, tuple)) else [labels]:
            if isinstance(label, str):
                return [
                    f'{where}: gt_label of {info.get("img_path")} is {label!r}, expected a number: the place of the '
                    'class in metainfo.classes, from 0'
                ]
    return []


def label_problems(dataset: Any, where: str, num_classes: Optional[int]) -> List[str]:
    """Check the labels of a data set for classification."""
    classes = dataset.metainfo.get('classes')
    number = len(classes) if classes else num_classes
    if number is None:
        return []
    table = label_table(dataset.data_list)
    wrong = table[(table[:, 1] < 0) | (table[:, 1] >= number)].tolist()
    if not wrong:
        return []
    return [
        f'{where}: {len(wrong)} of {len(table)} labels are not within 0 to {number - 1} '
        f'({shorten(f"line {place + 1}: {label}" for place, label in wrong)}): labels are numbered from 0'
    ]
