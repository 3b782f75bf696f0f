"""Models of another library, with the special features of MMYOLO, MMPose, MMAction2 and MMDetection3D."""

import torch
import torch.nn as nn
from mmdet.models import SingleStageDetector
from mmdet.structures.bbox import BaseBoxes
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import FUNCTIONS

from otherlab.registry import HOOKS, MODELS


@FUNCTIONS.register_module()
def stack_samples(samples):
    """Collate images into one tensor, and boxes of the pipeline's type into another."""
    boxes = [sample['data_samples'].gt_instances.bboxes for sample in samples]
    assert all(isinstance(each, BaseBoxes) for each in boxes)
    boxes = torch.cat([each.tensor for each in boxes])
    return dict(inputs=torch.stack([sample['inputs'] for sample in samples]).float(), data_samples=boxes)


@MODELS.register_module()
class OtherPreprocessor(nn.Module):
    def __init__(self, mean=None, std=None, bgr_to_rgb=False):
        super().__init__()

    def forward(self, data, training=False):
        assert isinstance(data['data_samples'], torch.Tensor)
        return data


@MODELS.register_module()
class PlainPreprocessor(BaseDataPreprocessor):
    """A data preprocessor without channel conversion, as in MMAction2."""

    def __init__(self, mean=None, std=None):
        super().__init__()


@MODELS.register_module()
class OtherDetector(SingleStageDetector):
    def __init__(self, backbone, neck, bbox_head, data_preprocessor):
        super(SingleStageDetector, self).__init__(data_preprocessor=data_preprocessor)
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)
        self.bbox_head = MODELS.build(bbox_head)

    def train(self, mode=True):
        super().train(mode)  # returns None

    def loss(self, inputs, data_samples):
        maps = self.bbox_head(self.neck(self.backbone(inputs)))
        return dict(loss_bbox=sum((each.mean() - data_samples.mean() / 100) ** 2 for each in maps))


class Widened(nn.Module):
    """A 1x1 convolution for each of the inputs, whose numbers of channels are multiplied by ``widen_factor``."""

    def __init__(self, in_channels, widen_factor, out_channels=None):
        super().__init__()
        inputs, outputs = ([int(each * widen_factor) for each in n] for n in (in_channels, out_channels or in_channels))
        self.layers = nn.ModuleList(nn.Conv2d(*each, 1) for each in zip(inputs, outputs))

    def forward(self, maps):
        assert len(maps) == len(self.layers)
        return [layer(each) for layer, each in zip(self.layers, maps)]

    def train(self, mode=True):
        super().train(mode)  # returns None


@MODELS.register_module()
class OtherNeck(Widened):
    """A neck with as many output channels as input channels."""


@MODELS.register_module()
class AddingNeck(Widened):
    """A neck that adds inputs and outputs, which must have equal numbers of channels."""

    def forward(self, maps):
        return [each + output for each, output in zip(maps, super().forward(maps))]


@MODELS.register_module()
class OtherHead(nn.Module):
    def __init__(self, head_module):
        super().__init__()
        self.head_module = Widened(**head_module)

    def forward(self, maps):
        return self.head_module(maps)


@MODELS.register_module()
class OtherThing(nn.Module):
    """A module that is no model of any library."""


@MODELS.register_module()
class OtherBox3D(SingleStageDetector):
    """A detector of mmdet with another format of predictions, as the 3D detectors of MMDetection3D."""

    def add_pred_to_datasample(self, data_samples, results_3d, results_2d):
        raise NotImplementedError


@MODELS.register_module()
class OtherBackbone(nn.Module):
    """A backbone with outputs of strides 8 and 32, of which the head reads the last."""

    def __init__(self, strides=(8, 32), channels=(8, 24), bare=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, each, stride, stride) for each, stride in zip(channels, strides))
        self.bare = bare

    def forward(self, x):
        maps = tuple(layer(x) for layer in self.layers)
        return maps[0] if self.bare else maps


@MODELS.register_module()
class OtherPose(BaseModel):
    """A model of another task, as in MMPose: its ground truth is unknown, but it supports ``mode='tensor'``.

    Args:
        takes (str): ``'images'``, or ``'clips'`` as MMAction2, or ``'names'`` as MMDetection3D.
        size (tuple, optional): Height and width of the last map, if the head requires them.
        unpacks (str, optional): The model unpacks the outputs of backbones whose type begins with this.
    """

    def __init__(
        self, backbone, head, takes='images', size=None, input_size=None, unpacks=None, data_preprocessor=None
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        self.one_map = unpacks is not None and not backbone['type'].startswith(unpacks)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(head['in_channels'], 5, 1)
        self.takes, self.size = takes, size

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'tensor' and isinstance(inputs, dict) == (self.takes == 'names')
        if self.takes == 'names':
            inputs = inputs['imgs']
        assert inputs.ndim == (5 if self.takes == 'clips' else 4)
        maps = self.backbone(inputs.flatten(0, 1) if self.takes == 'clips' else inputs)
        last = maps.relu() if self.one_map else maps[-1]
        assert self.size is None or last.shape[2:] == tuple(self.size), f'expected a map of {self.size}'
        return dict(heatmaps=[self.head(last)])


@HOOKS.register_module()
class OtherDrawingHook(Hook):
    def __init__(self, enable=False, interval=50, out_dir=None):
        pass


@HOOKS.register_module()
class OtherSavingHook(Hook):
    def __init__(self, draw=False, show=False):
        pass
