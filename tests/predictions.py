"""Helpers for tests of prediction runs: running a small model, and reading its results."""

import csv
import json

import numpy as np
from PIL import Image

from fcvit_mm.apis.predict import Options, predict
from fcvit_mm.engine.config import load_config

FOLDERS = {'classification': 'val', 'detection': 'val2017', 'segmentation': 'images/validation'}
CLASSES = ('circle', 'cross', 'square', 'star', 'triangle')


def predict_to(model, out, inputs=None, **options):
    config, checkpoint, images = model
    options = Options(**{'workers': 0, 'device': 'cpu', **options})
    return predict(load_config(config), checkpoint, inputs or [str(images)], str(out), options)


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'run.json'
    }


def numbers(folder, task):
    """Return the results as an array, in the order of the images."""
    if task == 'classification':
        rows = sorted(table(folder / 'predictions.csv'), key=lambda row: (row['image'], row['class_id']))
        return np.array([float(row['probability']) for row in rows])
    if task == 'detection':
        rows = json.loads((folder / 'results.json').read_text())
        return np.array([[row['image_id'], *row['bbox'], row['score']] for row in rows])
    return np.concatenate([np.asarray(Image.open(path)).ravel() for path in sorted((folder / 'labels').iterdir())])
