"""What the tests of preflight share: configs on data of their own, and the remarks that are made."""

import json
import logging
import shutil
import tempfile
from functools import lru_cache

import pytest
from coco_files import file_of
from harness import LIBRARIES, write_config
from mmengine.config import Config

from fcvit_mm.engine.config import load_config, set_pretrained
from fcvit_mm.preflight import remarks
from fcvit_mm.preflight.limits import TimeLimit

#: Stands for the folder of the data in a config that several tests begin with: reading one takes a second.
DATA = '/the/data/set'


@lru_cache(maxsize=None)
def read_config(task, more):
    with tempfile.TemporaryDirectory() as folder:
        return load_config(str(write_config(task, folder, DATA, more)))


def replaced(node, data):
    if isinstance(node, dict):
        return {key: replaced(value, data) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(replaced(each, data) for each in node)
    return node.replace(DATA, data) if isinstance(node, str) else node


@pytest.fixture
def own(tmp_path, shapes):
    """Task -> a config on a copy of its data set, and that copy."""

    def get(task, options=None, more=''):
        pytest.importorskip(LIBRARIES[task])
        data = tmp_path / 'data'
        if not data.exists():
            shutil.copytree(shapes(task), data)
        cfg = Config(replaced(read_config(task, more).to_dict(), str(data)))
        cfg.merge_from_dict(options or {})
        if 'pretrained' in (options or {}):
            set_pretrained(cfg, options['pretrained'])
        cfg.work_dir = str(tmp_path / 'work')
        return cfg, data

    return get


@pytest.fixture
def said(monkeypatch):
    """Remarks that are made, without those on time."""
    lines = []

    def say(text, logger, level):
        if level >= logging.WARNING:
            lines.append(text)

    monkeypatch.setattr(remarks, 'print_log', say)
    return lines


@pytest.fixture
def change_annotations():
    """Change an annotation file in COCO's format."""

    def change(data, split, edit):
        path = data / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return path

    return change


@pytest.fixture
def read_annotations(tmp_path):
    """Return a file as pycocotools reads it, with one changed annotation, and mmdet's data set of it."""
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset

    from fcvit_mm.preflight.data.dataset import load_list

    def get(**changes):
        (tmp_path / 'a.json').write_text(json.dumps(file_of(**changes)))
        dataset = CocoDataset(
            ann_file=str(tmp_path / 'a.json'),
            data_prefix=dict(img=''),
            metainfo=dict(classes=('a',)),
            pipeline=[],
            lazy_init=True,
        )
        everything, api = load_list(dataset, TimeLimit())
        assert everything == dataset.data_list and len(everything) == 1
        return dataset, api

    return get
