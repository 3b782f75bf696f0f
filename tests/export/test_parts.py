"""Exported parts with pixels as input normalize them as mmdet does; features."""

import torch
import torch.nn as nn
from detectors import build_detector, drawn_image

from fcvit_mm.export.detectors.detections import Detections
from fcvit_mm.export.parts import Features, FromPixels, Preparation

#: The normalization of mmdet's stock configs.
USUAL = Preparation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 'RGB')


@torch.no_grad()
def test_pixels_are_normalized_as_mmdet_does():
    from mmdet.models import DetDataPreprocessor
    from mmdet.structures import DetDataSample

    image = torch.from_numpy(drawn_image(40, 50))
    part = FromPixels(Detections(build_detector('fcos')), USUAL)
    preprocessor = DetDataPreprocessor(USUAL.mean, USUAL.std, bgr_to_rgb=True)
    data = preprocessor(dict(inputs=[image.permute(2, 0, 1)], data_samples=[DetDataSample()]))
    torch.testing.assert_close(part.normalize(image[None]), data['inputs'])
    assert (part.from_normalized(data['inputs']) == image[None]).all()
    assert part.axes == {1: 'height', 2: 'width'} and part.inputs(3, 3, 8, 9).shape == (1, 8, 9, 3)


def test_neck_or_backbone_that_returns_one_tensor():
    """As FPNC of MMOCR. The tensor is one map, not a list with one map per image."""
    images = torch.rand(2, 3, 4, 4)
    for part in (Features(nn.Identity()), Features(nn.Identity(), nn.Identity())):
        (features,) = part(images)
        assert torch.equal(features, images)
