"""Metrics of exported files and of their model on the config's test data, by its evaluator.

The library preprocesses the images, postprocesses the predictions and evaluates them; the file only replaces the
network.
"""

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Dict, Iterator, List, Sequence

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR, DefaultScope
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from ..apis.load import Network
from ..engine.machine import adapt_to_machine
from ..errors import UserError, library_errors
from .detectors.detections import Detections
from .parts import FromPixels, Part
from .runtimes import Runnable

#: The first row of a table: the model, evaluated as the library does it.
PYTORCH = 'PyTorch'
ADVICE = 'Check the test data and the evaluator in the config'


def build_test_data(cfg: Config) -> DataLoader:
    """Build a config's test data, before the longer steps.

    Raises:
        UserError: Test data or evaluator are missing or cannot be built.
    """
    for key in ('test_dataloader', 'test_evaluator'):
        if not cfg.get(key):
            raise UserError(f'--evaluate: {cfg.filename or "the config"} has no {key}: add it, or omit --evaluate')
    adapt_to_machine(cfg)
    with library_errors('building the test data', ADVICE), DefaultScope.overwrite_default_scope(cfg.default_scope):
        _build_evaluator(cfg)
        return Runner.build_dataloader(cfg.test_dataloader, seed=0)


def evaluate(
    cfg: Config, network: Network, part: Part, data: DataLoader, runtimes: Dict[str, Runnable]
) -> Dict[str, Dict[str, float]]:
    """Evaluate a model and its exported files on the config's test data.

    Args:
        cfg (Config): Config of the model.
        network (Network): The model.
        part (nn.Module): The exported part: the complete model with its head.
        data (DataLoader): Result of :func:`build_test_data`.
        runtimes (dict[str, callable]): Name -> function from images, as ``part`` takes them, to the file's outputs.

    Returns:
        dict: ``'PyTorch'`` and each runtime -> the metrics by the evaluator's names.

    Raises:
        UserError: The library cannot read the data or evaluate the predictions.
    """
    model: Any = network.model
    contexts = {PYTORCH: nullcontext, **{name: _context_of(model, part, run) for name, run in runtimes.items()}}
    dataset: Any = data.dataset
    with library_errors('evaluating on the test data', ADVICE), DefaultScope.overwrite_default_scope(cfg.default_scope):
        evaluators = {name: _build_evaluator(cfg) for name in contexts}
        for evaluator in evaluators.values():
            evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
        for batch in data:
            for name, evaluator in evaluators.items():
                with torch.no_grad(), contexts[name]():
                    # A copy, because the test step changes samples in place.
                    outputs = model.test_step(
                        dict(batch, data_samples=[each.clone() for each in batch['data_samples']])
                    )
                evaluator.process(data_samples=outputs, data_batch=batch)
        return {
            name: {key: float(value) for key, value in evaluator.evaluate(len(dataset)).items()}
            for name, evaluator in evaluators.items()
        }


def _build_evaluator(cfg: Config) -> Evaluator:
    """Build an evaluator as the runner does: from one metric, a list, or an evaluator type."""
    settings = cfg.test_evaluator
    if isinstance(settings, dict) and settings.get('metrics') is not None:
        return EVALUATOR.build({'type': 'Evaluator', **settings})
    return Evaluator(settings)


def _context_of(model: Any, part: Part, run: Runnable) -> Callable[[], Any]:
    """Return a function that makes a context in which a file replaces the module that it was exported from."""

    def outputs(images: Tensor) -> Sequence[Tensor]:
        return run(part.from_normalized(images))

    inner = part.part if isinstance(part, FromPixels) else part
    if isinstance(inner, Detections):
        return lambda: _replaced((model, 'predict', _detect(model, inner, outputs)))
    if part.output == 'logits':
        return lambda: _replaced((model, 'encode_decode', lambda images, _: outputs(images)[0]))
    if part.output == 'scores':
        return lambda: _replaced(
            (model, 'extract_feat', lambda images, *_, **__: images),
            # The logarithm, because the head applies softmax again, which undoes it.
            (model.head, 'forward', lambda images: outputs(images)[0].log()),
        )
    raise UserError(f'--evaluate needs the complete model, but the graph returns {part.output}: use --part model')


@contextmanager
def _replaced(*methods: Any) -> Iterator[None]:
    """Replace methods, given as object, name and function, within the context."""
    for owner, name, function in methods:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, _ in methods:
            delattr(owner, name)


def _detect(model: Any, part: Detections, outputs: Callable[[Tensor], Sequence[Tensor]]) -> Callable[..., List[Any]]:
    """Return the result of a detector's ``predict``, from a file that takes one unpadded image at a time."""
    from mmengine.structures import InstanceData

    def predict(images: Tensor, samples: Any, rescale: bool = True) -> List[Any]:
        results = []
        for image, sample in zip(images, samples):
            height, width = sample.img_shape[:2]
            found = outputs(image[None, :, :height, :width].contiguous())
            names = ('bboxes', 'scores', 'labels', 'masks')[: len(found)]
            boxes = part.placed(found, sample.ori_shape[:2], sample.scale_factor)
            results.append(InstanceData(**dict(zip(names, boxes))))
        return model.add_pred_to_datasample(samples, results)

    return predict
