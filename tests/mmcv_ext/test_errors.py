"""The error of an operator that is missing."""

import pytest
import torch

from fcvit_mm.mmcv_ext import MMCVOperatorError

pytest.importorskip('mmcv')
pytest.importorskip('torchvision')
pytestmark = pytest.mark.usefixtures('our_operators')


def test_missing_operator_error_names_the_solution():
    from mmcv.ops import points_in_polygons, roi_align

    message = r'the operator {} of mmcv is not available.*MCV=compiled make setup.*pip install --no-build-isolation'
    with pytest.raises(MMCVOperatorError, match=message.format('points_in_polygons_forward')):
        points_in_polygons(torch.ones(1, 2), torch.ones(1, 8))
    with pytest.raises(MMCVOperatorError, match=message.format("roi_align with pool_mode='max'")):
        roi_align(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max')
