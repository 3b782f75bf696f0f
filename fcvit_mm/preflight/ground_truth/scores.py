"""The data of an evaluator, and the scores that a metric gives to their ground truth."""

import logging
import math
import multiprocessing
import sys
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from typing import Any, Dict, List, Optional, Sequence, Tuple
from unittest import mock

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement

from ...errors import origin
from ..contexts import quiet
from ..limits import TimeLimit
from ..log import shorten

#: Maximum number of images whose ground truth a metric evaluates; fields and ids are checked for all images.
IMAGES = 500
#: Seconds for evaluating them.
EVALUATION_SECONDS = 2.5
#: Tolerance below 1 for a perfect metric: metrics are means in float32, rounded to three places.
TOLERANCE = 1e-3


class Split:
    """Evaluation data of a metric: a validation or test data set, wrappers included.

    Args:
        dataset (Dataset): The outermost data set.
        leaves (sequence): The data sets inside it that load samples.
        packed (dict): Index -> sample that went through the pipeline already.
        limit (TimeLimit): Time limit of all checks.

    Attributes:
        scored (list[list[str]]): Names of the scores of each metric that evaluated the ground truth.
        score_names (list[str], optional): Names of all scores of the evaluator, if each metric was evaluated.
    """

    def __init__(self, dataset: Any, leaves: Sequence[Any], packed: Dict[int, Any], limit: TimeLimit) -> None:
        self.dataset = dataset
        self.leaves = list(leaves)
        self.packed = packed
        self.limit = limit
        self.scored: List[List[str]] = []
        self.score_names: Optional[List[str]] = None
        self._infos: Optional[List[dict]] = None

    @property
    def metainfo(self) -> dict:
        """``metainfo`` of the data set, as the runner gives it to metrics."""
        return self.dataset.metainfo

    @property
    def infos(self) -> List[dict]:
        """Return the entries of all samples in the data set's list, in its order."""
        if self._infos is None:
            if self.dataset in self.leaves:
                self._infos = self.dataset.data_list
            else:
                with ExitStack() as stack:
                    for leaf in self.leaves:
                        if getattr(type(leaf), 'get_data_info', None) is BaseDataset.get_data_info:  # copies an entry
                            stack.enter_context(mock.patch.object(leaf, 'get_data_info', leaf.data_list.__getitem__))
                    self._infos = [self.dataset.get_data_info(index) for index in range(len(self.dataset))]
        return self._infos

    def sample(self, index: int, load: bool = False) -> Optional[dict]:
        """Return a sample as a metric gets it, without predictions.

        Args:
            index (int): Index of the sample.
            load (bool): Whether to load the sample if it was not loaded yet.

        Returns:
            dict: The packed data sample as a dict; ``None`` if it was not loaded or its files are corrupt.
        """
        packed = self.packed.get(index)
        if load and packed is None:
            try:
                packed = self.dataset[index]
            except Exception:
                # Broad, because corrupt files, which are reported separately, cause any kind of error.
                return None
        data_sample = packed.get('data_samples') if isinstance(packed, dict) else None
        return data_sample.to_dict() if isinstance(data_sample, BaseDataElement) else None


def evaluate(metric: Any, number: int, split: Split) -> Dict[str, float]:
    """Return the scores of a metric for the processed samples, without output and in this process.

    Their names are noted in the split.

    mmdet's average precision forks processes and waits for them without a time limit. A forked copy of a process with
    threads may wait forever for a lock of another thread, so threads are used instead of processes.
    """
    forking, own = multiprocessing.Pool, 'mmdet.evaluation'
    modules = [multiprocessing, *(module for name, module in sys.modules.items() if name.startswith(own))]
    with ExitStack() as stack:
        stack.enter_context(quiet(logging.ERROR))
        for module in modules:
            if getattr(module, 'Pool', None) == forking:
                stack.enter_context(mock.patch.object(module, 'Pool', ThreadPool))
        scores: Dict[str, float] = metric.evaluate(number)
    split.scored.append(list(scores))
    return scores


def undefined_or_low(scores: Dict[str, float], best: float) -> Tuple[Dict[str, float], Dict[str, float]]:
    """Return the undefined scores (-1, NaN) and those that are not perfect."""
    numbers = {key: float(value) for key, value in scores.items() if np.ndim(value) == 0}
    undefined = {key: value for key, value in numbers.items() if math.isnan(value) or value < 0}
    low = {key: value for key, value in numbers.items() if key not in undefined and value < best * (1 - TOLERANCE)}
    return undefined, low


def scores_text(scores: Dict[str, float]) -> str:
    """Return scores as text."""
    return shorten((f'{key} {value:.4g}' for key, value in scores.items()), 3)


def input_problem(metric: Any, error: Exception, packed: bool) -> str:
    """Describe why a metric does not accept the ground truth."""
    kind, message, _ = origin(error)
    name = type(metric).__name__
    if packed and isinstance(error, KeyError):
        return (
            f'{name} reads {message} of each sample, which the pipeline of the data set does not pack: add it to '
            "meta_keys of the pipeline's last step, or load it (LoadAnnotations)"
        )
    return f'{name} fails on the data set ({kind}: {message or "no message"}): correct its settings or the annotations'
