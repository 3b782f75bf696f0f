"""Preprocessing of images: resizing, cropping, padding. test_load.py tests the pipelines together with networks."""

import numpy as np
import pytest

from fcvit_mm.apis.preprocessing import NetworkError, fit_image, pad_image


def test_images_are_resized_with_the_same_aspect_ratio_and_cropped():
    square = np.zeros((60, 80, 3), np.uint8)
    square[:, 10:70] = 200
    # 60x80 to 30x40, then to 30x30
    assert (fit_image(square, (30, 30))[:, 4:-4] == 200).all()
    assert (fit_image(square, (30, 40))[:, :4] < 100).all()
    with pytest.raises(NetworkError, match='size is 0x5, expected'):
        fit_image(square, (0, 5))


def test_images_are_padded_on_the_right_and_below():
    image = np.full((60, 80, 3), 200, np.uint8)
    padded = pad_image(image, (64, 96))
    assert padded.shape == (64, 96, 3) and (padded[60:] == padded[0, 95]).all() and (padded[:60, :80] == image).all()
    with pytest.raises(NetworkError, match=r'changed the image from \(60, 80\) to \(64, 64\) pixels'):
        pad_image(image, (64, 64))
