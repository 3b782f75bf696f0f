"""Images are read as in training; untrusted images are read within limits."""

import re
import shutil

import cv2
import numpy as np
import pytest
from image_files import KINDS, write_bomb, write_kind
from PIL import Image

from fcvit_mm.images import (
    EXIF_ORIENTATION,
    ImageError,
    display,
    image_problem,
    image_size,
    read_image,
    read_untrusted_image,
    truncation_problem,
)


@pytest.fixture
def photo(tmp_path):
    """A JPEG that its EXIF data rotates by 90 degrees: stored with width 40 and height 30, red on the left."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20, 0] = 250
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(pixels).save(tmp_path / 'photo.jpg', exif=exif, quality=95)
    return tmp_path / 'photo.jpg'


def test_images_are_read_as_in_training(photo):
    from mmcv.transforms import LoadImageFromFile

    expected = LoadImageFromFile()(dict(img_path=str(photo)))['img'][..., ::-1]
    for found in (read_image(photo), read_untrusted_image(photo, 'photo', 2**20, 10**6)):
        np.testing.assert_array_equal(found, expected)
    assert expected.shape == (40, 30, 3) and expected[5, :, 0].mean() > 200 > 50 > expected[35, :, 0].mean()
    assert image_size(photo) == (30, 40)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'I;16'])
def test_images_have_three_channels_of_8_bits(mode, tmp_path):
    image = Image.new(mode, (5, 4))
    image.save(tmp_path / 'a.png')
    found = read_image(tmp_path / 'a.png')
    assert found.shape == (4, 5, 3) and found.dtype == np.uint8


def test_missing_empty_and_truncated_images_are_refused(photo, tmp_path):
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'short.jpg').write_bytes(photo.read_bytes()[:-100])
    for name, message in (
        ('nowhere.jpg', 'does not exist'),
        ('empty.jpg', r'is empty \(0 bytes\)'),
        ('short.jpg', 'cannot be decoded .*truncated'),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)
        assert re.search(message, truncation_problem(tmp_path / name))
    assert truncation_problem(photo) is None


def test_bytes_after_the_image_are_allowed(photo):
    photo.write_bytes(photo.read_bytes() + b'more')
    assert truncation_problem(photo) is None and image_problem(photo) is None


@pytest.mark.parametrize('kind, suffix', KINDS[:7])
def test_images_agree_with_opencv(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    write_kind(path, kind)
    expected = cv2.imread(str(path))
    assert np.ptp(expected) > 200
    np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


def test_images_with_any_number_of_channels_are_displayed():
    grey, bands = np.full((4, 5), 7, np.uint8), np.zeros((4, 5, 8), np.float32)
    bands[..., 0], bands[0, 0, 2] = 0.5, 1
    assert (display(grey) == 7).all() and display(grey).shape == (4, 5, 3)
    shown = display(bands)
    assert shown.dtype == np.uint8 and shown[1, 1].tolist() == [0, 0, 128] and shown[0, 0].tolist() == [255, 0, 128]
    # 8-bit values are not changed, also as float32.
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(display(rgb), rgb)
    np.testing.assert_array_equal(display(rgb.astype(np.float32)), rgb)


def truncate(path):
    cv2.imwrite(str(path.with_suffix('.jpg')), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.with_suffix('.jpg').read_bytes()[:2000])


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda path: path.write_bytes(b''), 'holiday.png is empty'),
        (
            lambda path: path.write_text('not an image'),
            'cannot be opened as an image: it is corrupt, truncated, or not one of',
        ),
        (truncate, 'cannot be opened as an image'),
        (
            lambda path: path.write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n'),
            'not one of',
        ),
        (lambda path: path.write_bytes(bytes(2**20 + 1)), r'has 1.0 MiB, expected at most 1 MiB'),
        (lambda path: write_bomb(path, 9000, 8000), 'has 9000x8000 pixels, expected at most 50 million'),
        (lambda path: write_bomb(path, 2**30, 2**30), 'decodes to far more than the accepted 50 million pixels'),
    ],
)
def test_invalid_untrusted_images_are_refused(make, message, tmp_path):
    make(tmp_path / 'upload')
    with pytest.raises(ImageError, match=message) as error:
        read_untrusted_image(str(tmp_path / 'upload'), 'holiday.png', 2**20, 50_000_000)
    assert str(tmp_path) not in str(error.value)


def test_untrusted_images_are_decoded_by_content(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    shutil.move(tmp_path / 'a.png', tmp_path / 'called.jpg')
    np.testing.assert_array_equal(read_untrusted_image(str(tmp_path / 'called.jpg'), 'called.jpg', 2**20, 10**6), image)
