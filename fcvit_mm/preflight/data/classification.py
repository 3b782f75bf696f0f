"""Data sets for classification: folders of classes, lists of images, labels."""

import os
import os.path as osp
import re
import shlex
from itertools import islice
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from mmengine.fileio import list_from_file

from ...images import list_images, walk_entries
from ..limits import TimeLimit, spread
from ..log import log_warning, shorten
from .images import skipped_images, suffixes_of

#: Maximum number of files inspected in a folder without images, and of images whose label is compared with their
#: folder.
OTHERS, LISTED = 1000, 10000
#: Folders of systems: macOS, Synology, Linux and Windows.
SYSTEM_FOLDERS = ('__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN', 'System Volume Information')


def list_file_problems(ann_file: str) -> List[str]:
    """Find the lines without image and label in a list file of mmpretrain."""
    lines = [line.strip() for line in list_from_file(ann_file)]
    wrong = [
        number
        for number, line in enumerate(lines, 1)
        if not line.rpartition(' ')[0] or not is_integer_text(line.rpartition(' ')[2])
    ]
    if not wrong:
        return []
    first = lines[wrong[0] - 1]
    return [
        f'{ann_file}: {len(wrong)} of {len(lines)} lines are empty or have no label (lines {shorten(wrong)}): expected '
        f'"path label" with an integer label per line, {line_advice(first)}'
    ]


def is_integer_text(text: str) -> bool:
    """Check whether Python, and so mmpretrain, reads a text as an integer."""
    try:
        int(text)
    except ValueError:
        return False
    return True


def line_advice(line: str) -> str:
    """Return advice for a line of a list file that has no label after a space."""
    if not line:
        return 'remove the empty lines'
    given = f'but line {line!r} has'
    path, _, label = line.rpartition(' ')
    if path and re.fullmatch(r'\d+([,;]\d+)+', label):
        return f'{given} several labels: use MultiLabelDataset and its JSON file'
    for mark, name in ((',', 'a comma'), ('\t', 'a tab'), (';', 'a semicolon')):
        if line.rpartition(mark)[2].strip().isdigit() and ' ' not in line.rpartition(mark)[2]:
            return f'{given} {name} before the label: write a space'
    if path and line.split(' ')[0].isdigit():
        return f'{given} the label in front: write it behind the path'
    if path and re.fullmatch(r'-?\d+\.0*', label):
        return f'{given} a label with a decimal point: write {int(float(label))}'
    return f'but there is {line!r}: write the number of the class, and remove lines such as a heading'


def folder_problems(dataset: Any, folder: str, limit: TimeLimit) -> List[str]:
    """Check the class folders of a classification data set."""
    folders = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    hidden = [name for name in folders if name.startswith('.') or name in SYSTEM_FOLDERS]
    if hidden:
        return [
            f'{folder}: the folder {shorten(hidden)} is not a class but counts as one: remove it (rm -r '
            f'{shlex.quote(osp.join(folder, hidden[0]))}), or put the folders of the classes into a folder of their own'
        ]
    classes = dataset.metainfo.get('classes')
    loose = sorted(path for path in list_images(folder, dataset.extensions, recursive=False))
    if not dataset.data_list and len(list_images(folder, dataset.extensions)) == len(loose):
        return [no_image_problem(dataset, folder, folders, loose, limit)]
    if loose:
        log_warning(
            f'{len(loose)} images directly in {folder} ({loose[0]}) are in no folder of a class and are skipped'
        )
    report_folders(folder, folders)
    if classes is not None and len(classes) != len(folders):
        return [
            f'{folder} has {len(folders)} folders ({shorten(folders)}), one per class, but {type(dataset).__name__} '
            f'has {len(classes)} classes: set metainfo=dict(classes=[...]) of the data set, or replace it by '
            f"dict(type='CustomDataset', data_root={folder!r}, pipeline=...), which takes the class names from the "
            'folders'
        ]
    if classes is not None and sorted(classes) == sorted(folders) and tuple(classes) != folders:
        return [
            f'metainfo.classes ({shorten(classes)}) is in another order than the folders in {folder} '
            f'({shorten(folders)}), whose labels follow their sorted names: use that order'
        ]
    skipped = skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit)
    if skipped and dataset.data_list:
        log_warning(
            f'{len(skipped)} images below {folder} end in {suffixes_of(skipped)} ({skipped[0]}) and are skipped, '
            f'because the data set has extensions={tuple(sorted(dataset.extensions))}: set extensions of the data set, '
            'or convert the images'
        )
    return []


def no_image_problem(dataset: Any, folder: str, folders: Sequence[str], loose: Sequence[str], limit: TimeLimit) -> str:
    """Describe the content of a folder, and of folders below it, that has no images in class folders."""
    if loose:
        return (
            f'{len(loose)} images are directly in {folder} ({loose[0]}), and none in a folder below it: move the '
            'images of each class into a folder with its name, or list them in an ann_file'
        )
    found = suffixes_of(skipped_images([osp.join(folder, name) for name in folders], dataset.is_valid_file, limit))
    if found:
        but = f', but images that end in {found}: set extensions of the data set, or convert them'
    else:
        others = [entry.name for entry in islice(walk_entries(folder), OTHERS) if not entry.name.startswith('.')]
        but = f', but {shorten(sorted(others), 3)}: unpack or complete the data' if others else ''
    return f'no images ({", ".join(sorted(dataset.extensions))}) below {folder}{but}'


def report_folders(folder: str, folders: Sequence[str]) -> None:
    """Report class folders named by numbers that are not in numerical order, and a single folder with other folders."""
    numbers = [int(name) for name in folders if name.isdigit()]
    if len(numbers) == len(folders) and numbers != sorted(numbers):
        label = next(place for place, number in enumerate(numbers) if number != sorted(numbers)[place])
        log_warning(
            f'{folder}: the folders are sorted as text, so label {label} is the class {folders[label]!r}: predictions '
            'are named right, but their numbers are not the names. Names with leading zeros keep the order of numbers'
        )
    if len(folders) == 1:
        inner = osp.join(folder, folders[0])
        names = sorted(entry.name for entry in os.scandir(inner) if entry.is_dir())
        if len(names) > 1 and not list_images(inner, recursive=False):
            log_warning(
                f'{folder} has a single folder, {folders[0]}, which is the only class. If the folders in it are the '
                f'classes ({shorten(names)}), set data_prefix to {inner}'
            )


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
            if isinstance(label, str) or isinstance(label, int) and abs(label) >= 2**63:  # beyond 64 bits
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
    if dataset.ann_file and classes:
        report_folders_of_others(dataset, where)
        report_repeated_images(dataset, where)
    table = label_table(dataset.data_list)
    wrong = table[(table[:, 1] < 0) | (table[:, 1] >= number)].tolist()
    if not wrong:
        return []
    return [
        f'{where}: {len(wrong)} of {len(table)} labels are not within 0 to {number - 1} '
        f'({shorten(f"line {place + 1}: {label}" for place, label in wrong)}): labels are numbered from 0'
    ]


def report_folders_of_others(dataset: Any, where: str) -> None:
    """Report images of a list that are in the folder of another class than that of their label."""
    classes = list(dataset.metainfo['classes'])
    labels = {name: label for label, name in reversed(list(enumerate(classes)))}  # the first of names that occur twice
    infos = spread(dataset.data_list, LISTED)
    folders = [osp.basename(osp.dirname(str(info.get('img_path')))) for info in infos]
    named = [(info, name) for info, name in zip(infos, folders) if name in labels]
    other = [
        (info, name)
        for info, name in named
        if isinstance(info.get('gt_label'), int) and labels[name] != info['gt_label'] < len(classes)
    ]
    if other:
        info, name = other[0]
        log_warning(
            f'{where}: {len(other)} of {len(named)} checked images are in the folder of another class than their label '
            f'({info["img_path"]} has label {info["gt_label"]}, which is {classes[info["gt_label"]]!r} in '
            'metainfo.classes): correct the labels, or the order of the classes'
        )


def report_repeated_images(dataset: Any, where: str) -> None:
    """Report images that a list has several times with different labels."""
    labels: Dict[str, Any] = {}
    again: List[dict] = []
    for info in dataset.data_list:
        path = str(info.get('img_path'))
        if path in labels:
            again.append(info)
        else:
            labels[path] = info.get('gt_label')
    different = [info for info in again if info.get('gt_label') != labels[str(info['img_path'])]]
    if different:
        path = str(different[0]['img_path'])
        log_warning(
            f'{where}: {len(different)} images are listed again with another label ({path} with {labels[path]} and '
            f'{different[0]["gt_label"]}): keep one line for each image'
        )
