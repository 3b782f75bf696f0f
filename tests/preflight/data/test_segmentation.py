"""Data sets for segmentation: file names of images and maps, and the labels in the maps."""

import shutil

import numpy as np
import pytest
from image_files import renamed
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image
from problems import only_problem

from fcvit_mm.engine.hooks.corrupt_samples import guard
from fcvit_mm.preflight.checks import data_problems


def change_maps(data, change, dtype=np.uint8):
    for path in (data / 'annotations').rglob('*.png'):
        Image.fromarray(change(np.asarray(Image.open(path)).astype(int)).astype(dtype)).save(path)


def test_maps_with_ignored_pixels_only(make_config):
    cfg, data = make_config('segmentation')
    change_maps(data, lambda labels: np.zeros_like(labels))
    found = only_problem(cfg)
    assert 'checked maps are ignored (255); their files contain 0 (reduce_zero_label=True): nothing can be' in found


def test_maps_of_a_model_of_another_library_are_compared(make_config, logged):
    """Their number of classes is unknown."""
    cfg, data = make_config('segmentation')
    cfg.model = dict(type='UnknownModel')
    for number, path in enumerate((data / 'annotations' / 'training').iterdir()):
        labels = Image.open(path)
        labels.putpalette([number] * 768)
        labels.save(path)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('has the color (' in line and 'the labels mean others in each file' in line for line in logged)


def test_labels_above_255_loaded_with_8_bits(make_config):
    cfg, data = make_config('segmentation')
    cfg.model.decode_head.num_classes = 400
    change_maps(data, lambda labels: np.where(labels == 2, 300, labels), np.uint16)
    found = '\n'.join(data_problems(cfg, ['train_dataloader']))
    assert 'contain the labels 300, but are loaded with 8 bits: labels above 255 wrap around (300 becomes 44)' in found


@pytest.mark.parametrize(
    'label, advice', [(254, '. If 254 marks ignored pixels, replace it by 255 in the maps'), (7, '')]
)
def test_labels_above_the_number_of_classes(make_config, label, advice):
    cfg, data = make_config('segmentation')
    change_maps(data, lambda labels: np.where(np.arange(64) < 3, label, labels))
    found = only_problem(cfg)
    assert f'contain the labels {label}, but the model has 6 classes' in found
    assert found.endswith(f'correct num_classes or the maps{advice}')


def test_exchanged_folders_of_images_and_maps(make_config):
    cfg, data = make_config('segmentation')
    cfg.train_dataloader.dataset.data_prefix = dict(img_path='annotations/training', seg_map_path='images/training')
    found = only_problem(cfg)
    assert f'no images (*.jpg) in {data}/annotations/training (img_path), but in {data}/images/training' in found
    assert found.endswith('(seg_map_path): exchange them in data_prefix')


def test_maps_of_another_size_than_the_image(make_config):
    cfg, data = make_config('segmentation')
    change_maps(data, lambda labels: labels[::2, ::2])
    found = only_problem(cfg)
    assert '8 of 8 checked maps have another size than their image (' in found
    assert '0.png has size (32, 32), but its image has (64, 64) (width, height), ' in found
    assert found.endswith(': use the maps of these images, or resize maps with the nearest neighbor')


def test_reduce_zero_label_of_the_loading_step_only(make_config):
    cfg, _ = make_config('segmentation')
    cfg.train_dataloader.dataset.reduce_zero_label = False
    assert only_problem(cfg) == (
        'train_dataloader: reduce_zero_label is False for the data set, but another value for LoadAnnotations in its '
        'pipeline: set the same for both'
    )


@pytest.mark.parametrize('bands', [3, 4, 2])
def test_maps_that_are_color_images(make_config, bands):
    cfg, data = make_config('segmentation')
    change_maps(data, lambda labels: np.dstack([labels] * bands))
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 1 and '8 of 8 checked maps are color images' in found[0] and f'{bands} channels' in found[0]


def test_samples_with_labels_out_of_range_are_skipped_in_training(make_config):
    cfg, data = make_config('segmentation')
    maps = sorted((data / 'annotations' / 'training').iterdir())
    Image.new('L', (64, 64), 77).save(maps[3])
    __import__('mmseg.utils', fromlist=['x']).register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    guard(dataset, limit=0.0, skip=True)
    assert all(dataset[index]['data_samples'].gt_sem_seg.data.max() in range(256) for index in range(8))
    assert dataset.prepare_data.marks.nonzero().flatten().tolist() == [3]


def test_hidden_files_are_ignored(make_config):
    cfg, data = make_config('segmentation')
    for path in [*data.rglob('*.jpg'), *data.rglob('*.png')]:
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\26\7')
    (data / 'images' / 'training' / '__MACOSX').mkdir()
    (data / 'images' / 'training' / '__MACOSX' / '._0.jpg').write_bytes(b'x')
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_corrupt_images_are_not_reported_as_corrupt_maps(make_config, logged, content):
    cfg, data = make_config('segmentation', {'custom_hooks': [dict(type='SkipCorruptSamplesHook', limit=0.5)]})
    first, second, *_ = sorted((data / 'images' / 'training').iterdir())
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert '2 of 8 checked images are corrupt and will be skipped' in logged[0] and len(logged) == 1
    # A corrupt map is a problem, even if its image is skipped.
    path = data / 'annotations' / 'training' / f'{first.stem}.png'
    path.write_bytes(b'')
    assert f'{path} is empty' in only_problem(cfg)


TWO = """
metainfo = dict(classes=('background', 'foreground'), palette=[[0, 0, 0], [255, 255, 255]])
model.update(decode_head=dict(channels=32, num_classes=2), auxiliary_head=dict(channels=16, num_classes=2))
steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
for loader in (train_dataloader, val_dataloader):
    loader['dataset'].update(metainfo=metainfo, reduce_zero_label=False, pipeline=steps)
del loader
test_dataloader = val_dataloader
"""


def test_binary_maps_with_0_and_255(make_config, logged):
    cfg, data = make_config('segmentation', more=TWO)
    change_maps(data, lambda labels: np.where(labels > 1, 255, 0))
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    assert 'only 1 of 2 classes occurs (0) in 8 checked maps, whose files contain 0, 255; 255 is ignored' in logged[0]
    assert len(logged) == 2 and 'in 5 checked maps' in logged[1]
    logged.clear()
    change_maps(data, lambda labels: np.where(labels == 255, 1, 0) * (1 + 254 * (np.arange(64) == 0)))
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == [] and logged == []


def test_images_with_another_suffix(make_config, logged):
    cfg, data = make_config('segmentation')
    first, second, third, *others = sorted((data / 'images' / 'training').iterdir())
    renamed([first], '.jpeg')
    renamed([second], '.png')
    assert data_problems(cfg, ['train_dataloader']) == []
    assert len(logged) == 1 and f'2 images in {data / "images/training"} end in .jpeg, .png' in logged[0].replace(
        '//', '/'
    )
    assert "img_suffix='.jpg'" in logged[0]
    logged.clear()
    first.with_suffix('.jpeg').unlink()
    second.with_suffix('.png').unlink()
    assert data_problems(cfg, ['train_dataloader']) == []
    assert '2 segmentation maps in' in logged[0] and 'have no image (*.jpg) in' in logged[0]
    renamed([third, *others], '.tiff')
    problem = only_problem(cfg)
    assert 'no images (*.jpg) in' in problem and "but 6 that end in .tiff: set img_suffix='.tiff'" in problem


def test_additional_files_in_the_folders_of_images_and_maps(make_config, logged):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        shutil.copy(path, path.with_name(f'{path.stem}_color.png'))
        shutil.copy(path, data / 'images' / 'training')
    assert data_problems(cfg, ['train_dataloader']) == [] and 'end in .png' in logged.pop()
    cfg.train_dataloader.dataset.data_prefix.seg_map_path = 'images/training'
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda names: [*names[:2], '', *names[2:]], 'train.txt: lines 3 are empty: remove them'),
        (lambda names: [f'{name}.jpg' for name in names], "names (00000000.jpg, ...) already end in img_suffix='.jpg'"),
        (lambda names: names, None),
    ],
)
def test_list_files(make_config, change, message):
    cfg, data = make_config('segmentation')
    names = sorted(path.stem for path in (data / 'images' / 'training').iterdir())
    (data / 'train.txt').write_text('\n'.join(change(names)) + '\n')
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    if message is None:
        assert data_problems(cfg, ['train_dataloader']) == []
    else:
        assert message in only_problem(cfg)


def test_maps_saved_as_jpeg(make_config):
    cfg, data = make_config('segmentation')
    for path in list((data / 'annotations' / 'training').iterdir()):
        with Image.open(path) as image:
            image.point(lambda label: 9 * label).convert('L').save(path.with_suffix('.jpg'))
    cfg.train_dataloader.dataset.seg_map_suffix = '.jpg'
    assert 'correct num_classes or the maps. JPEG changes labels: save the maps as PNG' in only_problem(cfg)
    for path in (data / 'annotations' / 'training').glob('*.jpg'):  # JPEG files with the extension .png
        path.replace(path.with_suffix('.png'))
    cfg.train_dataloader.dataset.seg_map_suffix = '.png'
    assert 'correct num_classes or the maps. JPEG changes labels: save the maps as PNG' in only_problem(cfg)


def test_data_set_without_maps_with_format_only(make_config, logged):
    cfg, data = make_config('segmentation')
    shutil.rmtree(data / 'annotations' / 'validation')
    dataset = cfg.val_dataloader.dataset
    dataset.data_prefix = dict(img_path='images/validation', seg_map_path='')
    dataset.pipeline = [dataset.pipeline[0], dataset.pipeline[-1]]
    cfg.val_evaluator = dict(type='IoUMetric', format_only=True, output_dir=str(data / 'out'))
    assert data_problems(cfg, ['val_dataloader']) == []
    assert len(logged) == 1 and 'with format_only=True' in logged[0]


def test_maps_with_another_case_of_the_suffix(make_config):
    cfg, data = make_config('segmentation')
    for path in list((data / 'annotations' / 'training').iterdir()):
        path.rename(path.with_suffix('.PNG'))
    assert only_problem(cfg).endswith('00000000.PNG exists, with another case of letters')


def test_ignore_index_with_reduce_zero_label(make_config):
    cfg, _ = make_config('segmentation')
    cfg.train_dataloader.dataset.ignore_index = 0
    assert only_problem(cfg).endswith(
        'reduce_zero_label=True turns label 0 into 255, but the data set has ignore_index=0: set ignore_index=255 of '
        'the data set'
    )


def test_reduce_zero_label_with_classes_from_0(make_config, logged):
    cfg, data = make_config('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        with Image.open(path) as image:
            image.point(lambda label: max(label - 1, 0)).save(path)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert logged == [
        f'segmentation maps in {data / "annotations" / "training"} contain the labels 0 to 5, and '
        'reduce_zero_label=True ignores 0 and makes 1 the first class: if 0 is the first class, set '
        'reduce_zero_label=False of the data set and of LoadAnnotations'
    ]


def test_class_that_the_head_ignores(make_config, logged):
    cfg, _ = make_config(
        'segmentation', {'model.decode_head.ignore_index': 0, 'model.auxiliary_head.ignore_index': 255}
    )
    for path in cfg.train_dataloader.dataset.pipeline:
        path.pop('reduce_zero_label', None)
    cfg.train_dataloader.dataset.reduce_zero_label = False
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 7
    names = ('none', *cfg.train_dataloader.dataset.metainfo.classes)
    cfg.train_dataloader.dataset.metainfo = dict(classes=names, palette=[[1, 1, number] for number in range(7)])
    assert data_problems(cfg, ['train_dataloader']) == []
    assert logged == [
        'model.decode_head.ignore_index is 0, which is a class in the segmentation maps: the head does not learn it. '
        'Set model.decode_head.ignore_index=255, unless this is intended'
    ]
    logged.clear()
    cfg.train_dataloader.dataset.ignore_index = cfg.model.auxiliary_head.ignore_index = 0
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []


def test_maps_with_non_integer_values(make_config):
    cfg, data = make_config('segmentation', {'train_dataloader.dataset.seg_map_suffix': '.tif'})
    for path in (data / 'annotations' / 'training').glob('*.png'):
        with Image.open(path) as image:
            Image.fromarray((np.asarray(image) > 1).astype(np.float32) / 2).save(path.with_suffix('.tif'))
    assert only_problem(cfg) == (
        f'train_dataloader: segmentation maps in {data / "annotations" / "training"} contain 0.5, expected class '
        'indices: they are loaded as integers, here 255. Convert the values to indices'
    )


class LoadArrays:
    """A user's transform that loads maps from .npy files."""

    with_seg = True

    def __call__(self, results):
        labels = np.load(results['seg_map_path'])
        return {**results, 'gt_seg_map': labels, 'seg_fields': ['gt_seg_map']}


def test_maps_in_npy_files(make_config, logged):
    cfg, data = make_config('segmentation', {'train_dataloader.dataset.seg_map_suffix': '.npy'})
    for path in (data / 'annotations' / 'training').glob('*.png'):
        with Image.open(path) as image:
            np.save(path.with_suffix('.npy'), np.asarray(image).astype(int) - 1 & 255)
    found = data_problems(cfg, ['train_dataloader'])
    first = data / 'annotations' / 'training' / '00000000.npy'
    assert found[0] == (
        f'train_dataloader: {first} cannot be loaded by the pipeline (UnidentifiedImageError: cannot identify image '
        'file): save it as PNG, or load it with a step for its format'
    )
    dataset = cfg.train_dataloader.dataset
    dataset.reduce_zero_label = False
    TRANSFORMS.register_module(name='LoadArrays', module=LoadArrays, force=True)
    dataset.pipeline = [dataset.pipeline[0], dict(type='LoadArrays'), dict(type='PackSegInputs')]
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
