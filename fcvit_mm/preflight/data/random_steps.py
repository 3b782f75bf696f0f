"""Steps that change images at random, or flip them, in pipelines for evaluation."""

import copy
import random
from typing import Any, List, Sequence

import numpy as np
import torch

from ..contexts import quiet
from ..log import log_warning

#: Random seeds with which a sample is loaded; a step with a probability of 0.5 changes it in all or none at 1 of 128.
SEEDS = range(8)
#: Maximum size of the loaded image in bytes; one is kept for each seed.
LARGEST = 2**26


def report_random_steps(leaves: Sequence[Any], what: str) -> None:
    """Log a warning if the first sample of a data set for evaluation is changed at random, or flipped.

    Results would differ from run to run. Predictions for a flipped image do not fit its ground truth: mmdet does not
    flip boxes back, and mmseg flips predictions back, but not a segmentation map that was loaded before the flip.

    Args:
        leaves (sequence): The data sets that load samples.
        what (str): Name of the data loader in messages.
    """
    steps: List[Any] = getattr(getattr(leaves[0], 'pipeline', None), 'transforms', None) or []
    state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            message = describe_change(leaves[0], steps)
    except Exception:
        # Broad, because data sets and steps may be any code; those that fail are reported where samples are loaded.
        return
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
    if message:
        log_warning(f'{what}: {message}. Remove it from the pipeline of {what}, unless this is intended')


def describe_change(dataset: Any, steps: Sequence[Any]) -> str:
    """Describe the first step that changes the first sample at random or flips it; empty if there is none."""
    info, remaining = dataset.get_data_info(0), iter(steps)
    while 'img' not in info:
        info = next(remaining)(info)
    if info['img'].nbytes > LARGEST:
        return ''
    runs = [copy.deepcopy(info) for _ in SEEDS]
    for step in remaining:
        for number, seed in enumerate(SEEDS):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            runs[number] = step(runs[number])
        images = [run.get('img') for run in runs]
        if not all(isinstance(image, np.ndarray) for image in images):
            continue
        if any(not np.array_equal(image, images[0]) for image in images):
            return f'{type(step).__name__} changes the images at random, so the metrics differ from run to run'
        if runs[0].get('flip') and {'instances', 'gt_seg_map'} & set(runs[0]):
            return f'{type(step).__name__} flips the images, so predictions do not fit the ground truth'
    return ''
