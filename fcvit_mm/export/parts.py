"""Exportable parts of a classifier, detector or segmentor: graphs from tensors to tensors, of any image size."""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def random_images(shape: Tuple[int, ...]) -> Tensor:
    """Return random normalized images, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Part(nn.Module):
    """A part of a model that is exported.

    Attributes:
        output (str): Output of its graph: ``'features'``, ``'scores'``, ``'logits'`` or ``'detections'``.
        axes (dict[int, str]): Dynamic dimensions of its input: axis -> name.
        pads (bool): Whether it pads images to sizes that the network accepts.
    """

    output: str
    axes: Dict[int, str] = {0: 'batch', 2: 'height', 3: 'width'}
    pads: bool = False

    def inputs(self, batch: int, channels: int, height: int, width: int) -> Tensor:
        """Return random inputs, the same at each call: normalized images.

        Args:
            batch (int): Batch size; 1 if the graph takes single images.
            channels, height, width (int): Dimensions of each image.
        """
        return random_images((batch if 'batch' in self.axes.values() else 1, channels, height, width))

    def names(self, number: int) -> Tuple[str, ...]:
        """Return the output names for ``number`` outputs."""
        return (self.output,)

    def expected(self, inputs: Tensor) -> Tuple[Tensor, ...]:
        """Return the reference outputs for inputs."""
        outputs = self(inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def complete(self, outputs: Sequence[Tensor], inputs: Tensor) -> Tuple[Tensor, ...]:
        """Postprocess a file's outputs into the format of :meth:`expected`."""
        return tuple(outputs)

    def description(self) -> Dict[str, str]:
        """Describe its outputs, for the file's metadata."""
        return {}

    def record_for(self, kind: str) -> None:
        """Prepare for export to a format, in place."""

    def from_normalized(self, images: Tensor) -> Tensor:
        """Convert normalized images ``(B, C, H, W)`` to its inputs."""
        return images


class Features(Part):
    """Images to feature maps: a backbone and, if given, its neck.

    Shape:
        ``(B, C, H, W)`` to a tuple of maps in the order of the backbone's ``out_indices`` or the neck's outputs; the
        output of a class token is ``(B, C)``.
    """

    output = 'features'

    def __init__(self, backbone: nn.Module, neck: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def names(self, number: int) -> Tuple[str, ...]:
        return tuple(f'features{i}' for i in range(number))

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        features = self.backbone(images)
        features = features if self.neck is None else self.neck(features)
        return (features,) if isinstance(features, Tensor) else tuple(features)


class Scores(Part):
    """Images to the classes' scores, which add up to 1. ``(B, C, H, W)`` to ``(B, classes)``."""

    output = 'scores'

    def __init__(self, features: Features, head: Any) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)).softmax(1)


class Logits(Part):
    """Images to each pixel's logits, before softmax. ``(B, C, H, W)`` to ``(B, classes, H, W)``.

    Of a head with several outputs, these are the first.
    """

    output = 'logits'

    def __init__(self, features: Features, head: Any) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.features(images))
        logits = logits if isinstance(logits, Tensor) else logits[0]
        return F.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=self.head.align_corners)


class Preparation(NamedTuple):
    """Normalization of pixels before a network sees them.

    Attributes:
        mean, std (tuple[float]): Mean and deviation of each channel, in the network's order.
        order (str): Channel order of the network: ``'RGB'``, ``'BGR'`` or ``'as loaded'``, which OpenMMLab's pipelines
            load as BGR.
    """

    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    order: str


class FromPixels(Part):
    """A part that includes normalization. ``(B, H, W, C)`` uint8, as OpenCV reads images, to its outputs.

    Args:
        part (nn.Module): Part that expects normalized images.
        preparation (Preparation): The normalization.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, part: Part, preparation: Preparation) -> None:
        super().__init__()
        self.part = part
        self.output, self.pads = part.output, part.pads
        self.axes = {{2: 1, 3: 2}.get(axis, axis): name for axis, name in part.axes.items()}
        self.swap = preparation.order == 'RGB'
        self.register_buffer('mean', torch.tensor(preparation.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(preparation.std).view(1, -1, 1, 1), persistent=False)

    def inputs(self, batch: int, channels: int, height: int, width: int) -> Tensor:
        images = self.part.inputs(batch, channels, height, width)
        return (images * 60 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()

    def names(self, number: int) -> Tuple[str, ...]:
        return self.part.names(number)

    def description(self) -> Dict[str, str]:
        return self.part.description()

    def record_for(self, kind: str) -> None:
        self.part.record_for(kind)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return images ``(B, C, H, W)``."""
        images = pixels.permute(0, 3, 1, 2).to(self.mean)
        if self.swap:
            images = torch.cat((images[:, 2:], images[:, 1:2], images[:, :1]), 1)
        return (images - self.mean) / self.std

    def from_normalized(self, images: Tensor) -> Tensor:
        """Undo the normalization: return pixels ``(B, H, W, C)``; zero padding becomes the mean."""
        pixels = (images * self.std + self.mean).round().clamp(0, 255).byte()
        return (pixels.flip(1) if self.swap else pixels).permute(0, 2, 3, 1).contiguous()

    def forward(self, pixels: Tensor) -> Any:
        return self.part(self.normalize(pixels))

    def expected(self, pixels: Tensor) -> Tuple[Tensor, ...]:
        return self.part.expected(self.normalize(pixels))

    def complete(self, outputs: Sequence[Tensor], pixels: Tensor) -> Tuple[Tensor, ...]:
        return self.part.complete(outputs, self.normalize(pixels))
