"""Corrupt and truncated image files are reported."""

import errno
import importlib.util

import numpy as np
import pytest
from image_files import KINDS, write_kind
from PIL import Image

from fcvit_mm.errors import UserError
from fcvit_mm.images import (
    ImageError,
    ImageReader,
    checking,
    image_problem,
    image_size,
    read_image,
    read_labels,
    truncation_problem,
)


@pytest.mark.parametrize('kind, suffix', KINDS)
def test_truncation_is_found_in_all_formats(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    write_kind(path, kind)
    assert image_problem(path) is None and truncation_problem(path) is None and image_size(path) == (256, 64)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert f'{path} cannot be decoded' in image_problem(path)
    if suffix != 'tif' or importlib.util.find_spec(
        'tifffile'
    ):  # without tifffile, truncation is only found by decoding
        assert f'{path} cannot be decoded' in truncation_problem(path)
    with pytest.raises(ImageError, match='cannot be decoded'):
        read_image(path)


def test_folder_in_place_of_an_image(tmp_path):
    message = f'{tmp_path} is a folder, expected an image: correct the name in the annotations, or remove it'
    assert image_problem(tmp_path) == truncation_problem(tmp_path) == message


def test_problems_are_those_of_the_loading_step(tmp_path):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path / 'bands.tif'
    write_kind(path, 'bands')
    read = ImageReader(LoadImageFromFile(color_type='unchanged', imdecode_backend='tifffile'))
    assert image_problem(path, read) is None and read(path).shape == (64, 256, 8)
    (tmp_path / 'text.tif').write_text('not an image')
    assert 'text.tif cannot be decoded' in image_problem(tmp_path / 'text.tif', read)
    # A complete file in a format that the loading step does not support.
    np.save(tmp_path / 'array.npy', np.zeros((4, 5, 3), np.float32))
    assert image_problem(tmp_path / 'array.npy') is None
    assert 'array.npy cannot be decoded' in image_problem(tmp_path / 'array.npy', read)
    with pytest.raises(ImageError, match='array.npy cannot be read by the loading steps of the config'):
        read(tmp_path / 'array.npy')


def test_unsupported_images_are_not_reported_as_corrupt(tmp_path):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path / 'float.tif'
    Image.fromarray(np.zeros((4, 5), np.float32)).save(path)
    problem = image_problem(path, ImageReader(LoadImageFromFile()))
    assert problem.startswith(f'{path} cannot be loaded by the pipeline (') and 'complete (TIFF, mode F)' in problem
    assert problem.endswith('convert it to PNG with 8 or 16 bits, or set another imdecode_backend of the loading step')
    path.write_bytes(path.read_bytes()[:-40])
    assert f'{path} cannot be decoded' in image_problem(path, ImageReader(LoadImageFromFile()))


def test_too_many_open_files_are_no_corrupt_file(tmp_path, monkeypatch):
    """The samples would be skipped in training."""
    path = tmp_path / 'image.png'
    Image.new('RGB', (4, 4)).save(path)

    def fail(*_):
        raise OSError(errno.EMFILE, 'Too many open files')

    monkeypatch.setattr(checking, 'ends_completely', fail)
    monkeypatch.setattr(checking, '_decode_completely', fail)
    for check in (image_problem, truncation_problem, lambda path: image_problem(path, fail), read_image):
        with pytest.raises(UserError, match=r'image.png cannot be opened: Too many open .* \(ulimit -n\)') as error:
            check(path)
        assert type(error.value) is UserError  # an ImageError would be skipped in prediction


def test_labels_of_a_segmentation_map(tmp_path):
    Image.fromarray(np.array([[0, 3], [3, 255]], np.uint8)).save(tmp_path / 'map.png')
    assert read_labels(tmp_path / 'map.png') == [0, 3, 255]
