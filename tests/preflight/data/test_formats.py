"""Annotation files in the formats of other tools."""

import json
import pickle

import pytest
from problems import only_problem

from fcvit_mm.preflight.data.formats import known_format

VIA = {'a.jpg12': dict(filename='a.jpg', size=12, regions=[], file_attributes={})}
CONTENTS = [
    (dict(version='5', shapes=[], imagePath='a.jpg', imageData=None), 'is a file of LabelMe, for one image'),
    (dict(metainfo={}, data_list=[]), "is in MMEngine's format (type BaseDetDataset reads it)"),
    (dict(size=dict(height=4, width=4), objects=[], tags=[]), 'is a file of Supervisely, for one image'),
    (dict(_via_img_metadata=VIA), 'is a project of the VGG Image Annotator'),
    (VIA, 'is an export of the VGG Image Annotator in its own format'),
    ([dict(id=1, annotations=[], data=dict(image='a.jpg'))], 'is an export of Label Studio in its own format'),
    ([dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=0.5)], 'is a list of results (predictions) in COCO'),
    ([dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4])], 'is the list of annotations alone'),
    ([dict(image='a.jpg', annotations=[dict(label='a', coordinates={})])], 'is an export in CreateML format'),
    (dict(info={}, categories={}, items=[]), 'is in the format of Datumaro'),
    (dict(classes=[], tags=[]), 'is the description of a Supervisely project, without annotations'),
    (dict(data_row={}, projects={}), 'is an export of Labelbox in its own format'),
    ('train: ../train\nval: ../val\nnc: 1\n', 'is the description of a YOLO data set (data.yaml)'),
    ('# mine\nnames:\n  0: cat\n', 'is the description of a YOLO data set (data.yaml)'),
    ([dict(filename='a.jpg', ann={})], 'is in the middle format of mmdet 2'),
    ('<?xml version="1.0"?>\n<annotations></annotations>', 'is an XML file of CVAT'),
    ('<annotation><folder>a</folder></annotation>', 'is an XML file of one image, as VOC has'),
    ('0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.1 0.1\n', 'is a text file of YOLO'),
    ('filename,width,height,class,xmin\na.jpg,4,4,cat,1\n', 'is a table (CSV)'),
    ('{"id": 1}\n{"id": 2}\n', 'is a file with one JSON object per line (JSON lines)'),
    (
        'version https://git-lfs.github.com/spec/v1\n',
        'is a Git LFS pointer, not the file itself: fetch it with `git lfs',
    ),
    ('<!doctype html><html>', 'is a web page, not an annotation file: download the file itself'),
    (pickle.dumps([dict(filename='a.jpg')]), 'is a pickle, as older versions of mmdet read: export it'),
    (
        dict(images=[], categories=[], annotations=[dict(image_id=1, file_name='1.png', segments_info=[])]),
        "is a file of COCO's panoptic annotations (type CocoPanopticDataset reads it), without boxes",
    ),
    (dict(images=[], annotations=[dict(id=1, image_id=1, caption='a dog')]), "is a file of COCO's captions, without"),
    (dict(images=[], annotations=[dict(id=1, image_id=1, keypoints=[1, 2, 2])]), 'is a file of keypoints without box'),
    (dict(images=[], annotations=[dict(id=1, image_id=1, keypoints=[1, 2, 2], bbox=[1, 2, 3, 4])]), ''),
    (dict(images=[], annotations=[]), ''),
    ([], ''),
    ('{"images": [', ''),
    (b'\xff\xfe\x00', ''),
]


@pytest.mark.parametrize(('content', 'words'), CONTENTS)
def test_format_is_recognized(content, words, tmp_path):
    path = tmp_path / 'a.json'
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = known_format(str(path))
    assert found.startswith(f'{path} {words}') if words else found == ''


def test_missing_file_has_no_format(tmp_path):
    assert known_format(str(tmp_path / 'a.json')) == ''


@pytest.mark.parametrize('number', range(len(CONTENTS)))
def test_preflight_names_the_format(make_config, number):
    content, words = CONTENTS[number]
    if not words:
        return
    cfg, data = make_config('detection')
    path = data / 'annotations' / 'instances_train2017.json'
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert only_problem(cfg).startswith(f'train_dataloader: {path} {words}')


def test_missing_categories_and_folder_as_annotation_file(make_config, change_annotations):
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', lambda content: content.pop('categories'))
    assert only_problem(cfg) == f"train_dataloader: {path} has no 'categories', which COCO format requires: add them"
    cfg.train_dataloader.dataset.ann_file = 'annotations'
    assert only_problem(cfg).startswith(f'train_dataloader: ann_file {data}/annotations is a folder, expected a file')
    (data / 'labels').mkdir()
    for number in range(3):
        (data / 'labels' / f'{number}.txt').write_text('0 0.5 0.5 0.1 0.1\n')
    cfg.train_dataloader.dataset.ann_file = 'labels'
    assert only_problem(cfg) == (
        f'train_dataloader: ann_file {data}/labels is a folder, expected a file: {data}/labels/0.txt is a text file of '
        'YOLO, with one line per object of one image, not in COCO format: export or convert it to COCO format, all '
        '3 of them in one file'
    )
