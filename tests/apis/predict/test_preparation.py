"""Images that the test pipeline cannot prepare."""

import cv2
import numpy as np
import pytest
from predictions import predict_to, table


@pytest.mark.parametrize('workers', [0, 1])
def test_image_that_the_pipeline_cannot_prepare_is_skipped(mixed, tmp_path, workers):
    model = mixed('segmentation')
    cv2.imwrite(str(model[2] / 'thin.png'), np.zeros((1, 2000, 3), np.uint8))
    assert predict_to(model, tmp_path / 'out', batch_size=3, workers=workers).skipped == 1
    (row,) = table(tmp_path / 'out' / 'skipped.csv')
    assert row['image'] == 'thin.png'
    assert row['reason'].startswith('thin.png (2000x1 pixels) cannot be prepared by the test pipeline (')
    assert row['reason'].endswith('check the test pipeline of the config, or remove this image from the input')
