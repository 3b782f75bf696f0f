"""Loading a trained network together with its image preprocessing."""

import copy
import inspect
import os
import warnings
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn as nn
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..checkpoints import CheckpointError, check_finite, check_fits, read_checkpoint, weights_of
from ..dependencies import require
from ..engine.config import leaf_datasets, library_of, load_config, set_pretrained, task_or_library
from ..engine.machine import replace_sync_bn
from ..engine.wrapped import backbone_config
from ..errors import library_errors
from ..images import ImageReader, display, swap_channels
from .normalization import report_other_normalization
from .preprocessing import (
    ImageLike,
    NetworkError,
    fit_image,
    image_reader,
    pad_image,
    read_pixels,
    run_pipeline,
    split_pipeline,
)

#: Prefix of the name of a timm model that is given in place of a config file.
TIMM = 'timm:'


class Prepared(NamedTuple):
    """An image after the preprocessing of a network.

    Attributes:
        image (Tensor): ``(1, C, H, W)``, resized, normalized and padded, on the network's device.
        pixels (np.ndarray): ``(H, W, 3)`` uint8 RGB, the image before normalization, for drawing
            (:func:`~fcvit_mm.images.display`).
        size (tuple[int, int]): Height and width before padding.
    """

    image: Tensor
    pixels: np.ndarray
    size: Tuple[int, int]


class Network(NamedTuple):
    """A network in evaluation mode.

    Attributes:
        name (str): Name of the config or model, for titles.
        model (nn.Module): A classifier, detector or segmentor of OpenMMLab, or a model of timm.
        task (str): ``'classification'``, ``'detection'``, ``'segmentation'`` or the scope of another library.
        checkpoint (str, optional): The file of its weights; ``None`` for random weights.
        prepare (callable): ``prepare(image, size=None)`` turns an image into :class:`Prepared`. ``image`` is a file, or
            pixels from ``read`` (RGB if there are three channels). ``size`` is a height and width: the image is resized
            to cover it and cropped to it. ``None`` resizes and crops as in testing.
        class_names (tuple[str], optional): The class names, if the checkpoint contains them.
        read (ImageReader): Reader that loads images as the config's test pipeline does.
        in_channels (int): Number of channels of the images.
    """

    name: str
    model: nn.Module
    task: str
    checkpoint: Optional[str]
    prepare: Callable[..., Prepared]
    class_names: Optional[Tuple[str, ...]] = None
    read: ImageReader = ImageReader()
    in_channels: int = 3

    @property
    def label(self) -> str:
        """The name, followed by "(random weights)" if no checkpoint was loaded."""
        return self.name if self.checkpoint else f'{self.name} (random weights)'


def read_trained(checkpoint: str) -> Dict[str, Any]:
    """Read and check a checkpoint without running code from it.

    Args:
        checkpoint (str): Argument of :func:`~fcvit_mm.checkpoints.safe_load.read_checkpoint`.

    Returns:
        dict: Content of the file: ``state_dict``, ``meta``, ... or bare weights.

    Raises:
        CheckpointError: It cannot be downloaded or read, or contains NaN or infinite weights.
    """
    content = read_checkpoint(checkpoint)
    check_finite(weights_of(content, checkpoint), checkpoint)
    return content


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model with random weights, in evaluation mode and without SyncBN.

    Args:
        cfg (Config): Config of a model of any library that is built on MMEngine. It is not changed, and nothing is
            downloaded: a backbone's ``init_cfg`` is not run.

    Raises:
        ConfigError: A config without a model.
    """
    task_or_library(cfg)
    model = copy.deepcopy(cfg.model)
    replace_sync_bn(model, 'SyncBN')  # MMSyncBN cannot be built outside of distributed training
    if 'data_preprocessor' in cfg:  # as in mmpretrain's configs
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = revert_sync_batchnorm(MODELS.build(ConfigDict(model)))
    built.eval()  # not chained: some models return None from it
    return built


def tensor_forward(model: nn.Module, image: Tensor) -> Callable[[Tensor], List[Tensor]]:
    """Return a function that runs a model of any library in its mode ``'tensor'``, without ground truth.

    Args:
        model (nn.Module): A model with MMEngine's interface, ``forward(inputs, data_samples, mode)``.
        image (Tensor): ``(B, C, H, W)``, with which the format of the model's input is found: a batch of images, one
            clip of each video (MMAction2), or a dict (MMDetection3D).

    Returns:
        callable: Function from images of this shape to a list of the tensors in the outputs.

    Raises:
        Exception: The model's error, if it accepts none of these formats.
    """
    original = model.forward
    first: Optional[Exception] = None
    for form in (lambda x: x, lambda x: x.unsqueeze(1), lambda x: dict(imgs=x)):

        def run(images: Tensor, form: Callable[[Tensor], Any] = form) -> List[Tensor]:
            outputs = original(form(images), None, mode='tensor')
            return [each for each in tree_flatten(outputs)[0] if isinstance(each, Tensor)]

        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # warnings about a tensor in place of a dict
                run(image)
            return run
        except Exception as error:
            # Broad, because the config chooses the code.
            first = first or error
    assert first is not None
    raise first


def input_channels(model: nn.Module, cfg: Config) -> int:
    """Return the number of image channels of a model.

    This is the argument ``in_channels`` of its backbone. Without this argument it is that of the first convolution, if
    the data preprocessor or an attribute of the backbone agrees, and otherwise 3. The attribute alone is unreliable:
    MobileNetV2, ShuffleNet and EfficientNet keep the channels of their last layer in it.
    """
    backbone: Any = getattr(model, 'backbone', model)
    given = backbone_config(cfg.model).get('in_channels')
    if isinstance(given, int):
        return given
    kind: Any
    for kind in type(backbone).__mro__:
        argument = inspect.signature(kind.__init__).parameters.get('in_channels')
        if argument is not None and isinstance(argument.default, int):
            return argument.default
    first = next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), 3)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return first if first in (len(preprocessor.get('mean') or ()), getattr(backbone, 'in_channels', None)) else 3


def load_network(
    network: str,
    checkpoint: Optional[str] = None,
    device: Union[str, torch.device] = 'cpu',
    options: Optional[dict] = None,
) -> Network:
    """Build a network and load its weights, without running code from the checkpoint.

    Args:
        network (str): A config file of mmpretrain, mmdet or mmseg, this project's or another; or ``timm:NAME``, one
            of timm's models or this project's under timm's names (``timm:deit_small_patch16_224``).
        checkpoint (str, optional): A checkpoint of this network; ``None`` for random weights, the same each time.
        device (str | torch.device): Device of the network.
        options (dict, optional): Changes to the config, or arguments of timm's model.

    Raises:
        NetworkError: No such model of timm, or a config without a model.
        ConfigError: The config is missing or is none of the three libraries.
        CheckpointError: The checkpoint cannot be read or belongs to another network.
        ImportError: The network's library is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if network.startswith(TIMM):
            return _load_timm(network[len(TIMM) :], checkpoint, device, options or {})
        return _load_config(network, checkpoint, device, options)


def _load_config(
    network: str, checkpoint: Optional[str], device: Union[str, torch.device], options: Optional[dict]
) -> Network:
    cfg = load_config(network, options)
    if not cfg.get('model'):
        raise NetworkError(f'{network} has no model: give the config of a classifier, detector or segmentor')
    # The checkpoint contains the backbone's weights, too; without a checkpoint, weights stay random.
    if backbone_config(cfg.model).get('init_cfg'):
        set_pretrained(cfg, None)
    with library_errors(f'building the model of {network}', 'Correct the config'):
        model = build_model(cfg)
    read = image_reader(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        # The pipelines of other libraries need more than an image, such as the box of a person.
        known = library_of(cfg) is not None
        steps = split_pipeline(cfg).geometry if known else None
        pipeline = None if steps is None else Compose(steps)
    class_names = None if checkpoint is None else _load_weights(model, checkpoint, cfg)
    model.to(device)
    preprocess: Any = model.data_preprocessor
    name = os.path.splitext(os.path.basename(network))[0]
    channels = input_channels(model, cfg)

    def prepare(image: ImageLike, size: Optional[Sequence[int]] = None) -> Prepared:
        pixels = read_pixels(image, read, channels)
        if size is not None:
            pixels = fit_image(pixels, size)
        elif pipeline is None:
            lacks = 'no test_dataloader, which defines how images are resized'
            if not known:
                lacks = f'a test pipeline of {task_or_library(cfg)}, which may need more than an image'
            raise NetworkError(f'{network} has {lacks}: give a size')
        else:
            pixels = run_pipeline(pipeline, pixels)
        # OpenCV's order, as pipelines pack images; torch lacks some of NumPy's integers.
        packed = swap_channels(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
        inputs = torch.from_numpy(np.ascontiguousarray(packed.reshape(*packed.shape[:2], -1).transpose(2, 0, 1)))
        data = preprocess(dict(inputs=[inputs], data_samples=[BaseDataElement()]), False)
        tensor = data['inputs']
        size = (pixels.shape[0], pixels.shape[1])
        return Prepared(tensor, pad_image(display(pixels), tensor.shape[2:]), size)

    return Network(name, model, task_or_library(cfg), checkpoint, prepare, class_names, read, channels)


def _load_weights(model: nn.Module, checkpoint: str, cfg: Config) -> Optional[Tuple[str, ...]]:
    """Load a checkpoint of MMEngine into its model; return its class names."""
    content = read_trained(checkpoint)
    report_other_normalization(cfg, content, checkpoint)
    check_fits(model, checkpoint)
    model.load_state_dict(weights_of(content), strict=False)
    meta: Any = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    dataset = meta.get('dataset_meta')
    # Release candidates of mmdet 3 and mmseg 1 call them CLASSES, versions before kept these in meta itself.
    for node in (dataset if isinstance(dataset, dict) else {}, meta):
        for key in ('classes', 'CLASSES'):
            if isinstance(node.get(key), (list, tuple)):
                return tuple(map(str, node[key]))
    return None


def _load_timm(name: str, checkpoint: Optional[str], device: Union[str, torch.device], options: dict) -> Network:
    require('timm')
    import timm
    from timm.data import resolve_model_data_config

    from .. import timm as _  # noqa: F401 (registers this project's networks)

    if not timm.is_model(name):
        near = timm.list_models(f'*{name.split(".")[0].split("_")[0]}*')[:8]
        raise NetworkError(
            f'timm has no model {name!r}'
            + (f', but {", ".join(near)}, ...' if near else '')
            + ': give one of the names that timm.list_models() returns'
        )
    try:
        model = timm.create_model(name, pretrained=False, **{'dynamic_img_size': True, **options})
    except TypeError as error:  # only some transformers have the argument img_size
        if 'dynamic_img_size' not in str(error):
            raise NetworkError(
                f'timm cannot create {TIMM}{name} with {options}: {error}. Correct or omit these options'
            ) from error
        model = timm.create_model(name, pretrained=False, **options)
    if checkpoint is not None:
        try:
            model.load_state_dict(weights_of(read_trained(checkpoint)))
        except RuntimeError as error:
            raise CheckpointError(
                f'{checkpoint} does not fit {TIMM}{name}: {error}. Give a checkpoint of this model, and the options '
                'that it was trained with'
            ) from error
    model = model.to(device).eval()
    data = resolve_model_data_config(model)
    channels = options.get('in_chans', 3)
    mean, std = (torch.tensor(data[key], device=device).view(-1, 1, 1) for key in ('mean', 'std'))

    def prepare(image: ImageLike, size: Optional[Sequence[int]] = None) -> Prepared:
        crop_ratio = data['crop_pct'] if size is None else 1.0
        if channels != len(data['mean']):
            raise NetworkError(
                f'{TIMM}{name} has a mean and standard deviation for {len(data["mean"])} channels, but in_chans='
                f'{channels}: prepare the images yourself, or give a config of mmpretrain with TIMMBackbone'
            )
        pixels = read_pixels(image, ImageReader(), channels)
        pixels = fit_image(pixels, size or data['input_size'][1:], crop_ratio)
        tensor = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1) / 255
        return Prepared(((tensor - mean) / std).unsqueeze(0), pixels, (pixels.shape[0], pixels.shape[1]))

    return Network(name, model, 'classification', checkpoint, prepare, in_channels=channels)


class Meta(NamedTuple):
    """The classes that a model predicts.

    Attributes:
        names (tuple[str]): Class names; empty if neither checkpoint nor config contains them.
        palette (tuple[tuple[int]]): A color (RGB) for each; may be empty.
    """

    names: Tuple[str, ...] = ()
    palette: Tuple[Tuple[int, int, int], ...] = ()

    def name(self, index: int) -> str:
        """Return the name of a class, or its index if it has no name."""
        return self.names[index] if index < len(self.names) else str(index)


def meta_of(cfg: Config, content: Dict[str, Any]) -> Meta:
    """Return the class names and colors of the checkpoint or, if it has none, of the config's test data set.

    Args:
        cfg (Config): The config of the model.
        content (dict): The content of the checkpoint.
    """
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    found = meta.get('dataset_meta')
    if not isinstance(found, dict) or not (found.get('classes') or found.get('CLASSES')):
        # Before mmdet 3, mmseg 1 and mmpretrain 1, the names are in meta itself.
        found = meta if isinstance(meta.get('CLASSES'), (list, tuple)) else _meta_of_dataset(cfg)
    found = {str(key).lower(): value for key, value in found.items()}
    names = found.get('classes')
    palette = found.get('palette')
    colors = np.asarray(palette if isinstance(palette, (list, tuple, np.ndarray)) else [])
    return Meta(
        tuple(map(str, names)) if isinstance(names, (list, tuple)) else (),
        tuple((int(r), int(g), int(b)) for r, g, b in colors) if colors.ndim == 2 and colors.shape[1] == 3 else (),
    )


def _meta_of_dataset(cfg: Config) -> Dict[str, Any]:
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    if not dataset:
        return {}
    leaf = next(leaf_datasets(dataset))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            built = DATASETS.build(dict(leaf, lazy_init=True, pipeline=[]))
        except Exception:
            # Broad, because the data set may be of any type and its data missing; classes then have no names.
            return dict(leaf.get('metainfo') or {})
    return dict(built.metainfo)
