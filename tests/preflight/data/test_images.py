"""Corrupt images, unusual images and image sizes."""

import numpy as np
import pytest
from harness import LIBRARIES
from image_files import need_npy_step
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from problems import only_problem

from fcvit_mm.engine.hooks.corrupt_samples import guard
from fcvit_mm.images import EXIF_ORIENTATION
from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data.images import image_problems


def test_few_corrupt_images_are_allowed_in_training(tmp_path):
    paths = []
    for index in range(300):
        paths.append(str(tmp_path / f'{index}.jpg'))
        Image.new('L', (4, 4), index % 256).save(paths[-1])
    for index in (70, 1, 7):
        with open(paths[index], 'r+b') as file:
            file.truncate(100)
    assert image_problems(paths, allowed=0.01) == []
    # In validation no image may be corrupt.
    assert len(image_problems(paths, allowed=0.0)) == 3
    open(paths[9], 'wb').close()
    assert len(image_problems(paths, allowed=0.01)) == 4


def test_images_that_were_decoded_count_as_checked(tmp_path, monkeypatch, logged):
    monkeypatch.setattr('fcvit_mm.preflight.data.images.END_SECONDS', -1)  # on a slow disk
    paths = [str(tmp_path / f'{index}.jpg') for index in range(10)]
    for path in paths:
        Image.new('L', (4, 4)).save(path)
    open(paths[3], 'wb').close()
    assert image_problems(paths, allowed=0.1) == []
    assert logged[0].startswith('1 of 10 checked images are corrupt and will be skipped')


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_folders_written_with_a_dot_or_two_slashes(make_config, monkeypatch, task):
    cfg, root = make_config(task)
    monkeypatch.chdir(root.parent)
    for each in ('train_dataloader', 'val_dataloader'):
        cfg[each].dataset.data_root = f'./{root.name}//'
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []


KINDS_OF_IMAGES = {
    'one pixel': lambda size: Image.new('RGB', (1, 1)),
    'one channel': lambda size: Image.new('L', size, 100),
    '16 bits': lambda size: Image.fromarray(np.full(size[::-1], 40000, np.uint16)),
    'alpha': lambda size: Image.new('RGBA', size, (1, 2, 3, 4)),
    'palette': lambda size: Image.new('P', size, 3),
}


@pytest.mark.parametrize('task', LIBRARIES)
def test_unusual_images_are_loaded(make_config, task):
    """All are PNG files with the extension .jpg: the content decides. No error, and no image is skipped."""
    cfg, data = make_config(task)
    images = [path for path in sorted(data.rglob('*.jpg')) if 'train' in str(path.relative_to(data))]
    for path, make in zip(images, KINDS_OF_IMAGES.values()):
        with Image.open(path) as image:
            size = image.size
        make(size).save(path, 'PNG')
    __import__(f'{LIBRARIES[task]}.utils', fromlist=['x']).register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    guard(dataset, limit=0.0, skip=True)
    shapes = [tuple(dataset[index]['inputs'].shape[:1]) for index in range(len(dataset))]
    assert set(shapes) == {(3,)}
    # Except for the image of one pixel, whose map or boxes are for 64x64.
    assert int(dataset.prepare_data.marks.sum()) == (0 if task == 'classification' else 1)


def rotate(path, orientation):
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        image.resize((96, 64)).save(path, exif=exif)


def test_images_rotated_by_exif_data(make_config, logged, change_annotations):
    """First all images, with orientation 3, which keeps the size."""
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', lambda content: [each.update(width=96) for each in content['images']])
    for image in (data / 'train2017').iterdir():
        rotate(image, 3)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert (
        '4 of 4 checked images are rotated by EXIF data without a change of size' in logged[-1]
        and 'entation 3' in logged[-1]
    )
    first, *others = sorted((data / 'train2017').iterdir())
    for image in others:
        rotate(image, 1)
    rotate(first, 6)
    # A single one is skipped in training.
    assert data_problems(cfg, ['train_dataloader']) == [] and f'{first} is 64x96, not 96x64) and will be' in logged[-1]
    assert not any('without a change of size' in line for line in logged[1:])
    for image in others:
        rotate(image, 6)
    found = only_problem(cfg)
    assert (
        f'{path}: 4 of 4 checked images differ in size from their annotations' in found
        and 'is 64x96, not 96x64' in found
    )
    # A loading step that ignores EXIF data.
    cfg.train_dataloader.dataset.pipeline[0].update(imdecode_backend='pillow', color_type='color_ignore_orientation')
    assert not any('differ in size' in line for line in data_problems(cfg, ['train_dataloader']))


def test_images_loaded_with_channels_first(make_config):
    """For example, TIFF files with separate planes."""
    need_npy_step()
    cfg, data = make_config('segmentation')
    for image in (data / 'images' / 'training').iterdir():
        np.save(image.with_suffix('.npy'), np.zeros((13, 64, 64), np.float32))
    steps = cfg.train_dataloader.dataset.pipeline
    steps[0] = dict(type='LoadImageFromNpyFile')
    cfg.train_dataloader.dataset.img_suffix = '.npy'
    found = data_problems(cfg, ['train_dataloader'])
    assert (
        '.npy is loaded as (13, 64, 64), channels first, but the pipeline expects (height, width, channels)' in found[0]
    )


def test_missing_package_of_the_loading_step(make_config):
    pytest.importorskip('mmpretrain')
    cfg, data = make_config('classification')

    def read(path):
        raise ImportError('Please run "pip install lmdb"')

    paths = [str(path) for path in sorted((data / 'train').rglob('*.jpg'))]
    assert image_problems(paths, 1.0, read) == [f'images cannot be loaded ({paths[0]}): Please run "pip install lmdb"']


def test_16_bit_images_loaded_with_8_bits(make_config, logged):
    """Sensors with 12 bits write such images, which become almost black."""
    cfg, data = make_config('segmentation', {'train_dataloader.dataset.img_suffix': '.png'})
    paths = sorted((data / 'images' / 'training').glob('*.jpg'))
    for path in paths:
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 16).save(path.with_suffix('.png'))
    assert data_problems(cfg, ['train_dataloader']) == []
    (line,) = (line for line in logged if 'almost black' in line)
    assert line.startswith(f'all {len(paths)} checked images are almost black: their largest value is 1')
    assert 'LoadImageFromFile divides the values by 256: set its color_type="unchanged" and to_float32=True' in line
    logged.clear()
    for path in paths[:1]:
        path.rename(path.with_suffix('.png'))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert not any('almost black' in line for line in logged)
