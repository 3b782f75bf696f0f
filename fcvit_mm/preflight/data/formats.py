"""Recognizing annotation files of other tools and formats that are given in place of a file in COCO's format."""

import json
import os
import re
from typing import Any

from ...images import other_content
from ..log import shorten

#: Text formats: pattern of the beginning, and description.
TEXTS = (
    (r'\s*<annotations>|\s*<\?xml[^>]*>\s*<annotations>', 'an XML file of CVAT'),
    (r'\s*<annotation\b|\s*<\?xml[^>]*>\s*<annotation\b', 'an XML file of one image, as VOC has'),
    (r'\d+( [\d.e-]+){4,}\s', 'a text file of YOLO, with one line per object of one image'),
    (r'[^\n{[]*(filename|image|path)[^\n{[]*[,;\t][^\n{[]*(xmin|x1|bbox|class|label)', 'a table (CSV)'),
    (r'([^\n{[]*\n)*(nc|names|train|path):[ \n]', 'the description of a YOLO data set (data.yaml)'),
    (r'\s*\{.*\}\s*\n\s*\{', 'a file with one JSON object per line (JSON lines)'),
)

#: Annotation files of COCO without boxes: a key of their annotations -> description.
PURPOSES = {
    'segments_info': "a file of COCO's panoptic annotations (type CocoPanopticDataset reads it), without boxes",
    'caption': "a file of COCO's captions, without boxes",
    'keypoints': 'a file of keypoints without boxes',
}


def known_format(path: str) -> str:
    """Describe the format of an annotation file that is not in COCO's, with advice; empty if it is unknown.

    Args:
        path (str): The file.
    """
    content = other_content(path).replace(' cannot be decoded, because it', '')
    if 'Git LFS' in content or 'git-annex' in content or 'web page' in content:
        return (
            content.replace('an image', 'an annotation file')
            .replace('the image', 'the file')
            .replace(', or remove it from the data set', '')
        )
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
        if head[:1] == b'\x80' and len(head) == 2:
            return f'{path} is a pickle, as older versions of mmdet read: export it in COCO format'
        with open(path, encoding='utf-8') as text_file:
            text = text_file.read()
    except (OSError, UnicodeDecodeError):
        return ''
    try:
        name = name_of(json.loads(text))
    except ValueError:
        name = next((words for pattern, words in TEXTS if re.match(pattern, text[:2000], re.DOTALL)), '')
    return f'{path} is {name}, not in COCO format: export or convert it to COCO format' if name else ''


def folder_format(folder: str) -> str:
    """Describe a folder that is given as an annotation file, by its first file, with advice."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    texts = [name for name in names if name.lower().endswith(('.json', '.txt', '.xml'))]
    text = f'ann_file {folder} is a folder, expected a file'
    found = known_format(os.path.join(folder, texts[0])) if texts else ''
    if found:
        return f'{text}: {found}, all {len(texts)} of them in one file'
    return f'{text}: add the name of the file' + (f' ({shorten(texts)})' if texts else '')


def name_of(content: Any) -> str:
    """Name the format of a JSON file by its keys; empty if it is COCO's or unknown."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict) or not first:
        return ''
    keys = set(first)
    several = isinstance(content, list)
    for needed, name, is_list in (
        ({'shapes', 'imagePath'}, 'a file of LabelMe, for one image', False),
        ({'metainfo', 'data_list'}, "in MMEngine's format (type BaseDetDataset reads it)", False),
        ({'items', 'categories', 'info'}, 'in the format of Datumaro', False),
        ({'classes', 'tags'}, 'the description of a Supervisely project, without annotations', False),
        ({'data_row', 'projects'}, 'an export of Labelbox in its own format', False),
        ({'data_row', 'projects'}, 'an export of Labelbox in its own format', True),
        ({'image', 'annotations'}, 'an export in CreateML format', True),
        ({'objects', 'size'}, 'a file of Supervisely, for one image', False),
        ({'_via_img_metadata'}, 'a project of the VGG Image Annotator', False),
        ({'annotations', 'data'}, 'an export of Label Studio in its own format', True),
        ({'image_id', 'score'}, 'a list of results (predictions) in COCO format, without images and categories', True),
        ({'image_id', 'bbox'}, 'the list of annotations alone, without images and categories', True),
        ({'filename', 'ann'}, 'in the middle format of mmdet 2', True),
    ):
        if needed <= keys and several == is_list:
            return name
    annotations = first.get('annotations')
    if not several and isinstance(annotations, list) and annotations and isinstance(annotations[0], dict):
        for key, name in PURPOSES.items():
            if key in annotations[0] and 'bbox' not in annotations[0]:
                return name
    values = next(iter(first.values()))
    if not several and isinstance(values, dict) and {'filename', 'regions'} <= set(values):
        return 'an export of the VGG Image Annotator in its own format'
    return ''
