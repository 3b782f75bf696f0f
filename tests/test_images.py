"""Finding, checking and reading images."""

import importlib.util
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from image_files import write_bomb
from PIL import Image

from fcvit_mm.images import (
    EXIF_ORIENTATION,
    ImageError,
    ImageReader,
    allow_large_images,
    display,
    find_images,
    find_inputs,
    image_problem,
    image_size,
    list_images,
    read_image,
    read_labels,
    read_untrusted_image,
    truncation_problem,
)


@pytest.fixture
def photo(tmp_path):
    """A JPEG that its EXIF data turns by 90 degrees: 40 wide and 30 high as stored, red on the left."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20, 0] = 250
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(pixels).save(tmp_path / 'photo.jpg', exif=exif, quality=95)
    return tmp_path / 'photo.jpg'


def test_images_are_read_as_training_reads_them(photo):
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


def test_images_that_cannot_be_read(photo, tmp_path):
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


def ramp(dtype=np.uint16):
    """From 0 to the largest value along 256 columns."""
    return np.tile(np.linspace(0, np.iinfo(dtype).max, 256).astype(dtype), (64, 1))


def write_tiff(path, pixels, **options):
    pytest.importorskip('tifffile').imwrite(path, pixels, **options)


def write_kind(path, kind):
    """Write an image of 256x64 pixels of some kind."""
    rgb = np.dstack([ramp(), ramp()[:, ::-1], np.full_like(ramp(), 20000)])
    rng = np.random.default_rng(0)
    if kind == 'cmyk':
        Image.fromarray((rgb >> 8).astype(np.uint8)).convert('CMYK').save(path)
    elif kind == 'bands':
        write_tiff(path, rng.random((64, 256, 8), dtype=np.float32), photometric='minisblack')
    elif kind == 'compressed bands':
        bands = rng.integers(0, 65535, (64, 256, 13), dtype=np.uint16)
        write_tiff(path, bands, photometric='minisblack', compression='zlib')
    elif kind == 'array':
        np.save(path, rng.random((64, 256, 25), dtype=np.float32))
    else:
        rgba = (np.dstack([rgb, ramp()]) >> 8).astype(np.uint8)
        cv2.imwrite(str(path), {'grey16': ramp(), 'rgb16': rgb, 'rgba': rgba}[kind])


KINDS = [
    ('grey16', 'png'),
    ('grey16', 'tif'),
    ('rgb16', 'png'),
    ('rgb16', 'tif'),
    ('rgba', 'png'),
    ('cmyk', 'jpg'),
    ('rgba', 'webp'),
    ('rgba', 'bmp'),
    ('grey16', 'pgm'),
    ('bands', 'tif'),
    ('compressed bands', 'tif'),
    ('array', 'npy'),
]


@pytest.mark.parametrize('kind, suffix', KINDS)
def test_images_of_any_kind_are_checked(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    write_kind(path, kind)
    assert image_problem(path) is None and truncation_problem(path) is None and image_size(path) == (256, 64)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    assert f'{path} cannot be decoded' in image_problem(path)
    if suffix != 'tif' or importlib.util.find_spec('tifffile'):  # without it, only decoding tells
        assert f'{path} cannot be decoded' in truncation_problem(path)
    with pytest.raises(ImageError, match='cannot be decoded'):
        read_image(path)


@pytest.mark.parametrize('kind, suffix', KINDS[:7])
def test_images_are_read_as_opencv_reads_them(kind, suffix, tmp_path):
    path = tmp_path / f'image.{suffix}'
    write_kind(path, kind)
    expected = cv2.imread(str(path))
    assert np.ptp(expected) > 200
    np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


def test_problems_are_those_of_what_loads_an_image(tmp_path):
    from mmcv.transforms import LoadImageFromFile

    path = tmp_path / 'bands.tif'
    write_kind(path, 'bands')
    read = ImageReader(LoadImageFromFile(color_type='unchanged', imdecode_backend='tifffile'))
    assert image_problem(path, read) is None and read(path).shape == (64, 256, 8)
    (tmp_path / 'text.tif').write_text('not an image')
    assert 'text.tif cannot be decoded' in image_problem(tmp_path / 'text.tif', read)
    # Complete, and not of the kind that the steps load.
    np.save(tmp_path / 'array.npy', np.zeros((4, 5, 3), np.float32))
    assert image_problem(tmp_path / 'array.npy') is None
    assert 'array.npy cannot be decoded' in image_problem(tmp_path / 'array.npy', read)
    with pytest.raises(ImageError, match='array.npy cannot be read by the loading steps of the config'):
        read(tmp_path / 'array.npy')


def test_any_image_is_shown():
    grey, bands = np.full((4, 5), 7, np.uint8), np.zeros((4, 5, 8), np.float32)
    bands[..., 0], bands[0, 0, 2] = 0.5, 1
    assert (display(grey) == 7).all() and display(grey).shape == (4, 5, 3)
    shown = display(bands)
    assert shown.dtype == np.uint8 and shown[1, 1].tolist() == [0, 0, 128] and shown[0, 0].tolist() == [255, 0, 128]
    # Values of 8 bits stay, as float32 too.
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(display(rgb), rgb)
    np.testing.assert_array_equal(display(rgb.astype(np.float32)), rgb)


@pytest.mark.filterwarnings('error')
def test_large_images_are_the_users_own(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    Image.new('1', (13500, 13500), 1).save(tmp_path / 'large.png')
    assert truncation_problem(tmp_path / 'large.png') is None
    assert image_size(tmp_path / 'large.png') == (13500, 13500) and limit == Image.MAX_IMAGE_PIXELS
    # What decodes all pixels is asked of a small image and a small limit.
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    Image.new('L', (30, 20), 3).save(tmp_path / 'small.png')
    assert image_problem(tmp_path / 'small.png') is None and read_labels(tmp_path / 'small.png') == [3]
    assert read_image(tmp_path / 'small.png').shape == (20, 30, 3) and Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / 'small.png')
    allow_large_images()
    with Image.open(tmp_path / 'small.png') as image:
        assert image.size == (30, 20)
    with pytest.raises(ImageError, match='has 30x20 pixels, expected at most'):
        read_untrusted_image(tmp_path / 'small.png', 'small.png', 2**20, 500)


@pytest.fixture
def folder(tmp_path):
    """Images in two folders, one of them hidden, and other files."""
    for name in ('b.PNG', 'a.jpg', '.hidden.jpg', 'notes.txt', 'below/c.jpg'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).touch()
    return tmp_path / 'in'


def test_images_are_found(folder):
    def names(paths):
        return [os.path.relpath(path, folder) for path in paths]

    assert names(find_images(folder)) == ['a.jpg', 'b.PNG']
    assert names(find_images(folder, recursive=True)) == names(list_images(folder)) == ['a.jpg', 'b.PNG', 'below/c.jpg']
    assert names(list_images(folder, ('.png',))) == ['b.PNG'] and list_images(folder, ('.webp',)) == []
    assert find_images(folder / 'a.jpg') == [str(folder / 'a.jpg')]
    assert find_inputs(folder) == (find_images(folder), None)
    assert find_inputs(folder / 'a.jpg') == ([str(folder / 'a.jpg')], None)
    (folder / 'x.npy').touch()
    assert names(find_images(folder / 'x.npy')) == ['x.npy'] and 'x.npy' not in names(find_images(folder))
    (folder / 'arrays').mkdir()
    (folder / 'arrays' / 'y.npy').touch()
    assert names(find_images(folder / 'arrays')) == ['arrays/y.npy']
    (folder / 'v.mp4').touch()
    assert find_inputs(folder / 'v.mp4') == ([], str(folder / 'v.mp4'))


@pytest.mark.parametrize(
    'path, images, inputs',
    [
        ('nowhere.jpg', 'nowhere.jpg does not exist: give an image or', 'nowhere.jpg does not exist: give an image, a'),
        ('empty', r'no images \(.*\) in .*empty', r'no images \(.*\) in .*empty'),
        (
            'notes.txt',
            'notes.txt does not have the name of an image, expected',
            'notes.txt has the name of neither an image .* nor a video',
        ),
    ],
)
def test_paths_that_stand_for_no_image(path, images, inputs, folder):
    (folder / 'empty').mkdir()
    with pytest.raises(ImageError, match=images):
        find_images(folder / path)
    with pytest.raises(ImageError, match=inputs):
        find_inputs(folder / path)


def test_labels(tmp_path):
    Image.fromarray(np.array([[0, 3], [3, 255]], np.uint8)).save(tmp_path / 'map.png')
    assert read_labels(tmp_path / 'map.png') == [0, 3, 255]


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
def test_untrusted_images_that_are_refused(make, message, tmp_path):
    make(tmp_path / 'upload')
    with pytest.raises(ImageError, match=message) as error:
        read_untrusted_image(str(tmp_path / 'upload'), 'holiday.png', 2**20, 50_000_000)
    assert str(tmp_path) not in str(error.value)


def test_untrusted_images_are_decoded_by_content(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    shutil.move(tmp_path / 'a.png', tmp_path / 'called.jpg')
    np.testing.assert_array_equal(read_untrusted_image(str(tmp_path / 'called.jpg'), 'called.jpg', 2**20, 10**6), image)


def test_links_to_folders_above_are_not_followed(tmp_path):
    (tmp_path / 'in' / 'deep').mkdir(parents=True)
    (tmp_path / 'in' / 'a.png').touch()
    (tmp_path / 'beside').mkdir()
    (tmp_path / 'beside' / 'b.png').touch()
    (tmp_path / 'in' / 'self').symlink_to(tmp_path / 'in')
    (tmp_path / 'in' / 'deep' / 'up').symlink_to(tmp_path)
    (tmp_path / 'in' / 'beside').symlink_to(tmp_path / 'beside')
    names = [os.path.relpath(path, tmp_path / 'in') for path in list_images(tmp_path / 'in')]
    assert names == ['a.png', os.path.join('beside', 'b.png')]
