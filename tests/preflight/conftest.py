"""Fixtures of the preflight tests: configs with a copy of their data set, and the logged warnings."""

import json
import logging
import shutil
import tempfile
from functools import lru_cache

import pytest
from coco_files import file_of
from harness import LIBRARIES, write_config
from mmengine.config import Config

from fcvit_mm.apis import normalization
from fcvit_mm.engine.config import load_config, set_pretrained
from fcvit_mm.preflight import log
from fcvit_mm.preflight.limits import TimeLimit

#: Placeholder for the data folder in configs that several tests share, because reading a config takes a second.
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
def make_config(tmp_path, shapes):
    """Return a function that makes a config of a task, and the folder with a copy of its data set."""

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
def logged(monkeypatch):
    """Collect the logged warnings; messages about the time (level INFO) are not collected."""
    lines = []

    def say(text, logger, level):
        if level >= logging.WARNING:
            lines.append(text)

    for module in (log, normalization):
        monkeypatch.setattr(module, 'print_log', say)
    return lines


@pytest.fixture
def change_annotations():
    """Return a function that changes an annotation file in COCO format."""

    def change(data, split, edit):
        path = data / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return path

    return change


@pytest.fixture
def read_annotations(tmp_path):
    """Return a function that changes an annotation of a file, and loads the file with mmdet and pycocotools."""
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
