import shutil

import pytest

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.limits import TimeLimit
from fcvit_mm.preflight.overlap import report_overlap

LOADERS = ['train_dataloader', 'val_dataloader']


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_separate_images_are_not_reported(make_config, logged, task):
    assert data_problems(make_config(task)[0], LOADERS) == []
    assert not any('training image' in text for text in logged)


def test_validation_on_the_training_images(make_config, logged):
    cfg, data = make_config('classification')
    cfg.val_dataloader.dataset.data_prefix = 'train'
    assert data_problems(cfg, LOADERS) == []
    assert any(
        text.startswith('val_dataloader: 8 of 8 images are training images (') and str(data / 'train') in text
        for text in logged
    )


@pytest.mark.parametrize(('fold', 'common'), [(0, 0), (1, 2)])
def test_folds_of_one_data_set(make_config, logged, fold, common):
    cfg, _ = make_config('classification')
    data = cfg.train_dataloader.dataset
    for loader, number, is_test in ((cfg.train_dataloader, 0, False), (cfg.val_dataloader, fold, True)):
        loader.dataset = dict(type='KFoldDataset', fold=number, num_splits=4, test_mode=is_test, dataset=data)
    assert data_problems(cfg, LOADERS) == []
    assert [text.partition(' (')[0] for text in logged if 'training image' in text] == [
        f'val_dataloader: {common} of 2 images are training images'
    ] * bool(common)


def test_validation_image_that_is_a_copy_of_a_training_image(make_config, logged):
    cfg, data = make_config('segmentation')
    image = sorted((data / 'images' / 'training').iterdir())[0]
    other = sorted((data / 'images' / 'validation').iterdir())[0]
    shutil.copy(image, other)
    assert data_problems(cfg, LOADERS) == []
    assert (
        f'val_dataloader: 1 of 5 compared images have the content of a training image ({other} is {image}): results on '
        'them say nothing about new images. Separate them, unless this is intended'
    ) in logged


def test_files_of_the_same_size_are_compared_by_content(tmp_path, logged):
    paths = [tmp_path / f'{number}.bmp' for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number % 3]) * 10)
    names = [str(path) for path in [*paths, tmp_path / 'missing.bmp']]
    report_overlap(names[1:3], names[:1] + names[4:], 'val', TimeLimit())
    assert logged == []
    report_overlap(names[:3], names[3:], 'val', TimeLimit())
    assert (
        len(logged) == 1
        and f'val: 1 of 2 compared images have the content of a training image ({names[3]} is' in logged[0]
    )


def test_copies_among_the_training_images(make_config, logged):
    cfg, data = make_config('classification')
    images = sorted((data / 'train').rglob('*.jpg'))
    for image in images[:4]:
        shutil.copy(image, image.with_name(f'copy of {image.name}'))
    assert data_problems(cfg, LOADERS) == []
    (text,) = logged
    assert 'train_dataloader: 8 of 12 compared images have the content of another one (' in text and ' is ' in text
    assert 'remove the repetitions, unless they are intended' in text
    logged.clear()
    images[0].with_name(f'copy of {images[0].name}').rename(data / 'elsewhere.jpg')
    for image in images[1:4]:
        image.with_name(f'copy of {image.name}').unlink()
    shutil.copy(images[0], images[0].with_name('once more.jpg'))
    assert data_problems(cfg, LOADERS) == [] and logged == []  # a single copy is not reported


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_same_annotations_for_different_images(make_config, logged, task):
    """The images have the same names in both folders, so no file is missing."""
    cfg, data = make_config(task)
    if task == 'detection':
        path = data / 'annotations' / 'instances_val2017.json'
        cfg.train_dataloader.dataset.ann_file = str(path)
    else:
        path = data / 'annotations' / 'training'
        cfg.val_dataloader.dataset.data_prefix = dict(img_path='images/validation', seg_map_path='annotations/training')
    assert data_problems(cfg, LOADERS) == []
    (text,) = [each for each in logged if 'the same annotations' in each]
    assert f'train_dataloader and val_dataloader have the same annotations, {path.resolve()}, for images in' in text
    assert text.endswith(': give each folder its own')


def test_disjoint_subsets_of_one_annotation_file(make_config, logged):
    cfg, _ = make_config('detection')
    shared = dict(ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'))
    cfg.train_dataloader.dataset.update(shared, indices=[0, 1])
    cfg.val_dataloader.dataset.update(shared, indices=[2, 3])
    data_problems(cfg, LOADERS)
    assert not any('the same annotations' in text for text in logged)
