"""A trained model that predicts prepared images, or tiles of them."""

import copy
import hashlib
import os
from contextlib import nullcontext
from typing import Any, ContextManager, Dict, Iterator, List, Sequence

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import autocast
from torch import Tensor, nn

from ...checkpoints import check_fits, weights_of
from ...checkpoints.names import some
from ...engine.command_options import enable_tta
from ...engine.config import task_of
from ...engine.machine import adapt_to_machine, replace_sync_bn
from ...errors import library_errors
from ...inference import optimize_for_inference
from ..load import Meta, build_model, input_channels, meta_of, read_trained
from ..normalization import report_other_normalization
from ..preprocessing import check_has_pipeline, image_reader, split_pipeline
from .options import Options, check_options
from .preparation import Loaded, prepare, without_loading_steps
from .results import PredictionError
from .tiles import merge, stitch, tile_boxes

#: Advice after an error of a library, if there is no better one for the error.
ADVICE = 'Check the config, and that the images are of its kind'
#: Parts of models whose number of classes is not that of the predictions.
OTHER_CLASSES = ('rpn_head', 'auxiliary_head', 'semantic_head', 'train_cfg', 'test_cfg', 'backbone')


class BatchPredictor:
    """A trained model that predicts images with the test step of its library.

    Args:
        cfg (Config): Result of :func:`~fcvit_mm.engine.config.load_config`; it is changed.
        checkpoint (str): A checkpoint trained with this config.
        options (Options): Options of the run.

    Raises:
        ConfigError, CheckpointError: The config or the checkpoint cannot be used.
        PredictionError: The options cannot be combined.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: Options) -> None:
        self.task, self.options = task_of(cfg), options
        self.scope, self.file = cfg.default_scope, cfg.filename
        check_options(options, self.task)
        if options.features and (cfg.model.get('test_cfg') or {}).get('mode') == 'slide':
            raise PredictionError(
                f'--features: {cfg.filename} has model.test_cfg.mode="slide", which runs the backbone once per window '
                'of an image, expected "whole": omit --features, or give a config that inherits this one and sets '
                'model = dict(test_cfg=dict(mode="whole"))'
            )
        adapt_to_machine(cfg)
        check_has_pipeline(cfg)
        content = read_trained(checkpoint)
        report_other_normalization(cfg, content, checkpoint)
        model = build_model(cfg)
        check_fits(model, checkpoint)
        model.load_state_dict(weights_of(content), strict=False)
        self.meta: Meta = meta_of(cfg, content)
        self.classes = max(list(_numbers_of_classes(cfg.model)) or [len(self.meta.names)])
        if self.task == 'segmentation':
            self.classes = max(self.classes, 2)  # one channel is compared with a threshold: 0 or 1
        self.channels = input_channels(model, cfg)
        self.reader, loading = image_reader(cfg), split_pipeline(cfg).loading
        self._weights = _hash_of(model)
        self.device = torch.device(_device_of_process(options.device or get_device()))
        if options.optimize:
            try:
                model = optimize_for_inference(model.to(self.device))
            except ValueError as error:
                raise PredictionError(f'--optimize: {error}. Omit --optimize') from error
        self.network = model
        if options.tta:
            enable_tta(cfg)
            wrapper = {key: value for key, value in cfg.model.items() if key != 'module'}
            with DefaultScope.overwrite_default_scope(self.scope):
                model = MODELS.build(ConfigDict(wrapper, module=model))
        steps = split_pipeline(cfg)
        self.steps = without_loading_steps([*(steps.geometry or []), *steps.packing])
        with DefaultScope.overwrite_default_scope(self.scope):
            self.pipeline = Compose(self.steps)
        described = copy.deepcopy(cfg.model)
        replace_sync_bn(described, 'BN')  # as on a CPU, where the run may be continued
        self.described = repr((loading, self.steps, described, self.meta))
        self.model: Any = model.to(self.device)
        self.model.eval()  # not chained: some models return None from it
        self._features: List[Tensor] = []
        if options.features:
            backbone: Any = self.network.backbone
            backbone.register_forward_hook(self._keep_features)

    def _keep_features(self, module: nn.Module, inputs: Any, output: Any) -> None:
        last = output[-1] if isinstance(output, (tuple, list)) else output
        axes = {4: (2, 3), 3: (1,)}.get(last.ndim)
        self._features = list((last if axes is None else last.mean(axes)).float().cpu())

    def fingerprint(self) -> Dict[str, str]:
        """Return hashes of the model and of settings of prediction, to detect results of another model."""
        return {'weights': self._weights, 'config': hashlib.sha256(self.described.encode()).hexdigest()}

    def _predict(self, data: Sequence[Dict[str, Any]], names: Sequence[str]) -> List[Any]:
        """Predict prepared images; images of equal size form a batch.

        Images of different sizes cannot share a batch: mmseg rejects it, and padding, as in mmdet and mmpretrain, would
        change predictions.

        Args:
            data (Sequence[dict]): Prepared images, each from :func:`prepare`.
            names (Sequence[str]): Names of the images, for messages.

        Returns:
            list[BaseDataElement]: Predictions, in the order of ``data``.

        Raises:
            LibraryError: The model fails; names the images.
        """
        groups: Dict[Any, List[int]] = {}
        for index, each in enumerate(data):
            groups.setdefault(_sizes(each['inputs']), []).append(index)
        order: List[int] = []
        samples: List[Any] = []
        features: List[Tensor] = []
        for group in groups.values():
            order += group
            with library_errors(
                f'predicting {some(dict.fromkeys(names[index] for index in group))} with {self.file}', ADVICE
            ):
                samples += self._step([data[index] for index in group])
            features += self._features
        places = np.argsort(order).tolist()
        self._features = [features[place] for place in places] if features else []
        return [samples[place] for place in places]

    def _step(self, data: List[Dict[str, Any]]) -> List[Any]:
        precision: ContextManager[Any] = autocast(device_type=self.device.type) if self.options.amp else nullcontext()
        with torch.no_grad(), precision, DefaultScope.overwrite_default_scope(self.scope):
            return [with_boxes(sample.cpu()) for sample in self.model.test_step(pseudo_collate(data))]

    def __call__(self, batch: Sequence[Loaded], names: Sequence[str]) -> List[Any]:
        """Predict images.

        Args:
            batch (Sequence[Loaded]): Images that are not skipped.
            names (Sequence[str]): Names of the images.

        Returns:
            list[BaseDataElement]: A data sample of the library for each.
        """
        if self.options.tile is None:
            return self._predict([loaded.data for loaded in batch if loaded.data is not None], names)
        return [self._predict_tiles(loaded, name) for loaded, name in zip(batch, names)]

    def features(self) -> List[np.ndarray]:
        """Return the features of the images predicted last, ``(channels,)`` float32 each."""
        return [each.numpy() for each in self._features]

    def _predict_tiles(self, loaded: Loaded, name: str) -> Any:
        assert loaded.pixels is not None
        boxes = tile_boxes(loaded.size, self.options.tile or 0, self.options.overlap)
        samples: List[Any] = []
        for start in range(0, len(boxes), self.options.batch_size):
            data = [
                prepare(self.pipeline, loaded.pixels[top:bottom, left:right], name, loaded.number)
                for left, top, right, bottom in boxes[start : start + self.options.batch_size]
            ]
            samples += [self._reduced(sample) for sample in self._predict(data, [name] * len(data))]
        if self.task == 'segmentation':
            return stitch(samples, boxes, loaded.size)
        return merge(samples, boxes, loaded.size)

    def _reduced(self, sample: Any) -> Any:
        """Remove the unused parts of a tile's prediction: drop per-pixel scores, encode masks."""
        if self.task == 'segmentation':
            labels = sample.pred_sem_seg.data
            # One byte per pixel if there are at most 256 classes, to save memory.
            sample.pred_sem_seg.data = labels.to(torch.uint8 if self.classes <= 256 else torch.int32)
            for key in ('seg_logits', 'i_seg_logits'):
                sample.pop(key, None)
        elif 'masks' in sample.pred_instances:
            from mmdet.structures.mask import encode_mask_results

            masks = sample.pred_instances.pop('masks')
            sample.pred_instances.masks = encode_mask_results([np.asarray(mask) for mask in masks])
        return sample


def with_boxes(sample: Any) -> Any:
    """Return a data sample with the boxes of its masks, if the model predicts masks only, as SOLO: its boxes are 0."""
    instances: Any = sample.get('pred_instances', {})
    if 'masks' in instances and len(instances) and not instances.bboxes.any():
        from mmdet.structures.mask import mask2bbox

        instances.bboxes = mask2bbox(torch.as_tensor(instances.masks))
    return sample


def _sizes(inputs: Any) -> Any:
    """Return the shape of a prepared image, or the shapes of its test-time augmentations."""
    return tuple(map(_sizes, inputs)) if isinstance(inputs, (list, tuple)) else tuple(inputs.shape)


def _hash_of(model: torch.nn.Module) -> str:
    weights = hashlib.sha256()
    for name, value in model.state_dict().items():
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return weights.hexdigest()


def _device_of_process(device: str) -> str:
    """Return the GPU of this process, if there are several processes and the device has no number."""
    alone = device == 'cpu' or ':' in device or not dist.is_initialized()
    return device if alone else f'{device}:{int(os.environ.get("LOCAL_RANK", 0))}'


def _numbers_of_classes(model: Any) -> Iterator[int]:
    """Yield the number of classes of each head of a model (:data:`OTHER_CLASSES`)."""
    if isinstance(model, dict):
        if isinstance(model.get('num_classes'), int):
            yield int(model['num_classes'])
        parts = [part for name, part in model.items() if name not in OTHER_CLASSES]
    else:
        parts = list(model) if isinstance(model, (list, tuple)) else []
    for part in parts:
        yield from _numbers_of_classes(part)
