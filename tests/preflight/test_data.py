import json
import re
import shutil

import numpy as np
import pytest
from harness import LIBRARIES
from image_files import need_npy_step
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from fcvit_mm.engine.hooks.corrupt_samples import guard
from fcvit_mm.images import EXIF_ORIENTATION
from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data import image_problems


def only(cfg, loader='train_dataloader'):
    (problem,) = data_problems(cfg, [loader])
    return problem


@pytest.mark.parametrize('task', LIBRARIES)
def test_classes_that_are_one_text(own, task, tmp_path):
    """A comma is missing; or it is a file of names, as the libraries read it."""
    cfg, _ = own(task)
    dataset = cfg.train_dataloader.dataset
    names = dataset.get('metainfo')
    dataset.metainfo = dict(names or {}, classes='circle')
    assert only(cfg) == (
        "train_dataloader: metainfo.classes is the text 'circle', expected a sequence of names or the path of a file "
        "with one name per line: write classes=('circle',), with a comma, for a single class"
    )
    if task == 'detection':
        (tmp_path / 'names.txt').write_text('\n'.join(names['classes']))
        dataset.metainfo.classes = str(tmp_path / 'names.txt')
        assert data_problems(cfg, ['train_dataloader']) == []


def test_few_corrupt_images_among_many_are_left_to_training(tmp_path):
    paths = []
    for index in range(300):
        paths.append(str(tmp_path / f'{index}.jpg'))
        Image.new('L', (4, 4), index % 256).save(paths[-1])
    for index in (70, 1, 7):
        with open(paths[index], 'r+b') as file:
            file.truncate(100)
    assert image_problems(paths, allowed=0.01) == []
    # In validation every image counts.
    assert len(image_problems(paths, allowed=0.0)) == 3
    open(paths[9], 'wb').close()
    assert len(image_problems(paths, allowed=0.01)) == 4


KINDS_OF_IMAGES = {
    'one pixel': lambda size: Image.new('RGB', (1, 1)),
    'one channel': lambda size: Image.new('L', size, 100),
    '16 bits': lambda size: Image.fromarray(np.full(size[::-1], 40000, np.uint16)),
    'alpha': lambda size: Image.new('RGBA', size, (1, 2, 3, 4)),
    'palette': lambda size: Image.new('P', size, 3),
}


@pytest.mark.parametrize('task', LIBRARIES)
def test_unusual_images_are_ordinary_ones(own, task):
    """PNG files called .jpg, too: what counts is the content. None ends training, none is skipped."""
    cfg, data = own(task)
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
    # But for the image of one pixel, whose map or boxes are for 64x64.
    assert int(dataset.prepare_data.marks.sum()) == (0 if task == 'classification' else 1)


def test_labels_out_of_range_are_met_in_training(own):
    cfg, data = own('segmentation')
    maps = sorted((data / 'annotations' / 'training').iterdir())
    Image.new('L', (64, 64), 77).save(maps[3])
    __import__('mmseg.utils', fromlist=['x']).register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    guard(dataset, limit=0.0, skip=True)
    assert all(dataset[index]['data_samples'].gt_sem_seg.data.max() in range(256) for index in range(8))
    assert dataset.prepare_data.marks.nonzero().flatten().tolist() == [3]


SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


@pytest.mark.parametrize(
    'mask, problem',
    [
        ([1, 1, 9, 1, 9, 9], 'it is a flat list'),
        ([], 'it is missing or empty'),
        (None, 'it is missing or empty'),
        (dict(size=[1, 2], counts='x'), 'its size is [1, 2]'),
        ([[1e9, 2, 12, 2, 12, 12]], 'far outside its image'),
    ],
)
def test_masks_that_training_cannot_load(own, change_annotations, mask, problem):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(segmentation=mask))
    found = only(cfg)
    assert 'have a segmentation that cannot be loaded (ids 1)' in found and problem in found
    # Without masks there is nothing to load.
    for step in cfg.train_dataloader.dataset.pipeline:
        step.pop('with_mask', None)
    cfg.model.roi_head.mask_head = None
    assert data_problems(cfg, ['train_dataloader']) == []


@pytest.mark.parametrize('mask, remark', [([[1, 1, 9, 9]], 'that mmdet skips'), ([SQUARE[0], [1, 1, 9, 9]], '')])
def test_masks_that_training_loads(own, said, change_annotations, mask, remark):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(segmentation=mask))
    assert data_problems(cfg, ['train_dataloader']) == []
    lines = [line for line in said if 'segmentation' in line]
    assert [remark in line and '(ids 1)' in line for line in lines] == [True] * bool(remark)


def test_boxes_that_are_no_numbers(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(bbox=[2, 2, float('nan'), 9]))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert 'have a bbox that is not four finite numbers (ids 1): mmdet skips them' in said[0]
    change_annotations(data, 'train', lambda content: content['annotations'][0].update(bbox=[2, 2, float('inf'), 9]))
    assert 'have a bbox that is not four finite numbers (ids 1): correct or remove them' in only(cfg)


@pytest.mark.parametrize(
    'change',
    [
        lambda each: each.update(category_id=each['category_id'] + 100),
        lambda each: each.update(category_id=str(each['category_id'])),
        lambda each: each.update(area=0),
        lambda each: each.update(bbox=[value / 64 for value in each['bbox']]),
    ],
)
def test_nothing_is_left_to_learn(own, said, change_annotations, change):
    cfg, data = own('detection')
    for split in ('train', 'val'):
        change_annotations(data, split, lambda content: [change(each) for each in content['annotations']])
    found = only(cfg)
    assert re.search('skips all [0-9]+ samples', found) or 'no object is left' in found
    assert re.search(r'(\d+) of \1 annotations have .* mmdet skips them', said[0])
    # Nothing to measure by, either.
    [found] = data_problems(cfg, ['val_dataloader'])
    assert re.search(r'\d+ images, but no object is left: CocoDataset skips', found)


@pytest.mark.parametrize('value', [1, '0'])
def test_all_objects_are_crowds(own, said, change_annotations, value):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: [each.update(iscrowd=value) for each in content['annotations']])
    found = only(cfg)
    assert re.search(r'instances_train2017.json: (\d+) of \1 objects are ignored in training', found)
    assert 'nothing can be learned. Correct the annotations: mark only crowds' in found
    assert f'"iscrowd" has the values {value!r}, expected the numbers 0 and 1' in found
    # One image is left.
    change_annotations(
        data,
        'train',
        lambda content: [each.update(iscrowd=0) for each in content['annotations'] if each['image_id'] == 1],
    )
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('objects are ignored in training (marked as crowd or difficult): mark only' in line for line in said)


@pytest.mark.parametrize('split, number', [('train', 1), ('val', 10**6)])
def test_some_crowds_are_ordinary(own, said, change_annotations, split, number):
    cfg, data = own('detection')
    change_annotations(
        data, split, lambda content: [each.update(iscrowd=1) for each in content['annotations'][:number]]
    )
    assert data_problems(cfg, [f'{split}_dataloader']) == []
    assert not any('are ignored in training' in line for line in said)


def test_a_part_without_objects_is_one_to_test_on(own, said, change_annotations):
    cfg, data = own('detection', {'val_dataloader.dataset.indices': 1})
    first = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())['images'][0]['id']

    def empty(content):
        content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first]

    change_annotations(data, 'val', empty)
    assert data_problems(cfg, ['val_dataloader']) == []


def test_classes_without_objects_can_be_tested(own, said, change_annotations):
    """The file has objects, of other classes."""
    cfg, data = own('detection')
    change_annotations(data, 'val', lambda content: [each.update(category_id=1) for each in content['annotations']])
    cfg.val_dataloader.dataset.metainfo = dict(classes=('cross', 'square'))
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    problems = data_problems(cfg, ['val_dataloader'])
    assert not any('no object is left' in problem for problem in problems), problems


def test_a_file_without_annotations_is_one_to_test_on(own, said, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'val', lambda content: content['annotations'].clear())
    assert data_problems(cfg, ['val_dataloader']) == []
    assert 'instances_val2017.json has no annotations' in said[0]


def test_images_below_the_smallest_size(own, change_annotations):
    cfg, _ = own('detection', {'train_dataloader.dataset.filter_cfg.min_size': 65})
    assert 'CocoDataset skips all 8 samples' in only(cfg) and 'min_size' in only(cfg)


def test_classes_that_never_occur(own, said, change_annotations):
    cfg, data = own('detection', more='\ntrain_dataloader["dataset"]["indices"] = None\n')

    def remove(content):
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] != 3]

    change_annotations(data, 'train', remove)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any('1 of 5 classes never occur (square)' in line for line in said)


NAMES = ('circle', 'cross', 'square', 'star', 'triangle')
LISTS = """
for loader, split in ((train_dataloader, 'train'), (val_dataloader, 'val')):
    loader['dataset'].update(ann_file=split + '.txt', metainfo=dict(classes=%r))
del loader, split
test_dataloader = val_dataloader
"""


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda lines: [*lines, ''], 'are empty or have no label (lines 9)'),
        (lambda lines: [line.rpartition(' ')[0] for line in lines[:2]] + lines[2:], 'no label (lines 1, 2)'),
        (lambda lines: [lines[0] + 'x', *lines[1:]], 'no label (lines 1)'),
        (
            lambda lines: [f'{line.rpartition(" ")[0]} {int(line[-1]) + 1}' for line in lines],
            'labels are numbered from',
        ),
        (lambda lines: [f'{lines[0][:-1]}-1', *lines[1:]], '(line 1: -1)'),
        (lambda lines: ['circle/lost.jpg 0', *lines], 'circle/lost.jpg does not exist'),
        (lambda lines: lines, None),
    ],
)
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_list_files(own, change, message, end):
    cfg, data = own('classification', more=LISTS % (NAMES,))
    lines = [
        f'{name}/{path.name} {label}'
        for label, name in enumerate(NAMES)
        for path in sorted((data / 'train' / name).iterdir())
    ]
    lines = [line.replace('000000.jpg', 'my image.jpg') for line in change(lines)]
    for path in (data / 'train').rglob('000000.jpg'):
        path.rename(path.with_name('my image.jpg'))
    # One that no list names.
    (data / 'train' / 'circle' / 'other.jpg').write_bytes(b'x')
    (data / 'train.txt').write_bytes((end.join(lines) + end).encode())
    if message is None:
        assert data_problems(cfg, ['train_dataloader']) == []
    else:
        assert message in only(cfg)


@pytest.mark.parametrize(
    'content, message',
    [
        ('\ufeffcircle/000000.jpg 0\n'.encode(), 'train.txt begins with a byte order mark'),
        ('circle/kr\xe4he.jpg 0\n'.encode('latin-1'), 'train.txt is not UTF-8 (invalid continuation byte at byte 9)'),
    ],
)
def test_encodings_of_list_files(own, content, message):
    cfg, data = own('classification', more=LISTS % (NAMES,))
    (data / 'train.txt').write_bytes(content)
    assert message in only(cfg)


def test_what_systems_leave_behind(own):
    cfg, data = own('classification')
    for path in list(data.rglob('*.jpg')):
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\26\7')
    (data / 'train' / '.DS_Store').write_bytes(b'x')
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    (data / 'train' / '.ipynb_checkpoints').mkdir()
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 1 and 'the folder .ipynb_checkpoints is not a class but counts as one: remove' in found[0]


def test_hidden_images_and_maps(own):
    cfg, data = own('segmentation')
    for path in [*data.rglob('*.jpg'), *data.rglob('*.png')]:
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\26\7')
    (data / 'images' / 'training' / '__MACOSX').mkdir()
    (data / 'images' / 'training' / '__MACOSX' / '._0.jpg').write_bytes(b'x')
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_few_corrupt_images_do_not_count_as_corrupt_maps(own, said, content):
    cfg, data = own('segmentation', {'custom_hooks': [dict(type='SkipCorruptSamplesHook', limit=0.5)]})
    first, second, *_ = sorted((data / 'images' / 'training').iterdir())
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert '2 of 8 checked images are corrupt and will be skipped' in said[0] and len(said) == 1
    # The map of a complete image is another matter.
    path = data / 'annotations' / 'training' / f'{first.stem}.png'
    path.write_bytes(b'')
    assert f'{path} is empty' in only(cfg)


def maps_of(data, change, dtype=np.uint8):
    for path in (data / 'annotations').rglob('*.png'):
        Image.fromarray(change(np.asarray(Image.open(path)).astype(int)).astype(dtype)).save(path)


def test_maps_that_teach_nothing(own):
    cfg, data = own('segmentation')
    maps_of(data, lambda labels: np.zeros_like(labels))
    found = only(cfg)
    assert 'checked maps are ignored (255); their files contain 0 (reduce_zero_label=True): nothing can be' in found


def test_labels_that_loading_wraps(own):
    cfg, data = own('segmentation')
    cfg.model.decode_head.num_classes = 400
    maps_of(data, lambda labels: np.where(labels == 2, 300, labels), np.uint16)
    found = '\n'.join(data_problems(cfg, ['train_dataloader']))
    assert 'contain the labels 300, but are loaded with 8 bits: labels above 255 wrap around (300 becomes 44)' in found


@pytest.mark.parametrize('bands', [3, 4, 2])
def test_maps_with_colours(own, bands):
    cfg, data = own('segmentation')
    maps_of(data, lambda labels: np.dstack([labels] * bands))
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 1 and '8 of 8 checked maps are colour images' in found[0] and f'{bands} channels' in found[0]


TWO = """
metainfo = dict(classes=('background', 'foreground'), palette=[[0, 0, 0], [255, 255, 255]])
model.update(decode_head=dict(channels=32, num_classes=2), auxiliary_head=dict(channels=16, num_classes=2))
steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
for loader in (train_dataloader, val_dataloader):
    loader['dataset'].update(metainfo=metainfo, reduce_zero_label=False, pipeline=steps)
del loader
test_dataloader = val_dataloader
"""


def test_masks_of_0_and_255_teach_nothing(own, said):
    cfg, data = own('segmentation', more=TWO)
    maps_of(data, lambda labels: np.where(labels > 1, 255, 0))
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    assert 'only 1 of 2 classes occurs (0) in 8 checked maps, whose files contain 0, 255; 255 is ignored' in said[0]
    assert len(said) == 2 and 'in 5 checked maps' in said[1]
    said.clear()
    maps_of(data, lambda labels: np.where(labels == 255, 1, 0) * (1 + 254 * (np.arange(64) == 0)))
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == [] and said == []


def turned(path, orientation):
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        image.resize((96, 64)).save(path, exif=exif)


def test_images_that_exif_data_turns(own, said, change_annotations):
    """All of the small set, so that these are no exceptions; orientation 3 keeps the size."""
    cfg, data = own('detection')
    path = change_annotations(data, 'train', lambda content: [each.update(width=96) for each in content['images']])
    for image in (data / 'train2017').iterdir():
        turned(image, 3)
    assert data_problems(cfg, ['train_dataloader']) == []
    assert (
        '4 of 4 checked images are rotated by EXIF data without a change of size' in said[-1]
        and 'entation 3' in said[-1]
    )
    first, *others = sorted((data / 'train2017').iterdir())
    for image in others:
        turned(image, 1)
    turned(first, 6)
    # One of few is what the run skips.
    assert data_problems(cfg, ['train_dataloader']) == [] and f'{first} is 64x96, not 96x64) and will be' in said[-1]
    assert not any('without a change of size' in line for line in said[1:])
    for image in others:
        turned(image, 6)
    found = only(cfg)
    assert (
        f'{path}: 4 of 4 checked images differ in size from their annotations' in found
        and 'is 64x96, not 96x64' in found
    )
    # A loading step that does not turn them.
    cfg.train_dataloader.dataset.pipeline[0].update(imdecode_backend='pillow', color_type='color_ignore_orientation')
    assert not any('differ in size' in line for line in data_problems(cfg, ['train_dataloader']))


def test_wrong_steps_of_the_pipeline(own):
    cfg, data = own('detection')
    steps = cfg.train_dataloader.dataset.pipeline
    steps.insert(1, dict(type='LoadProposals'))
    assert '.jpg failed: KeyError' in only(cfg) and 'proposals' in only(cfg)
    steps[1] = dict(type='NoSuchStep')
    assert 'CocoDataset cannot be built: NoSuchStep' in only(cfg)
    del cfg.train_dataloader.dataset['type']
    assert 'has no type: give its class' in only(cfg)


def test_pipeline_that_gives_nothing(own):
    cfg, _ = own('detection')
    steps = cfg.train_dataloader.dataset.pipeline
    steps.insert(2, dict(type='FilterAnnotations', min_gt_bbox_wh=(999, 999), keep_empty=True))
    assert 'the pipeline returned None for all 4 samples' in only(cfg)


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ClassBalancedDataset', 'ConcatDataset', 'MultiImageMixDataset'])
def test_wrappers(own, wrapper):
    cfg, _ = own('detection', {'model.roi_head.mask_head': None})  # Mosaic drops masks
    leaf = cfg.train_dataloader.dataset
    options = {
        'RepeatDataset': dict(dataset=leaf, times=2),
        'ClassBalancedDataset': dict(dataset=leaf, oversample_thr=0.5),
        'ConcatDataset': dict(datasets=[leaf, dict(type='RepeatDataset', dataset=leaf, times=2)]),
        'MultiImageMixDataset': dict(
            dataset=dict(leaf, pipeline=[leaf.pipeline[0], dict(type='LoadAnnotations', with_bbox=True)]),
            pipeline=[dict(type='Mosaic', img_scale=(64, 64)), dict(type='PackDetInputs')],
        ),
    }[wrapper]
    cfg.train_dataloader.dataset = dict(type=wrapper, **options)
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset['unknown'] = 1
    assert f'{wrapper} cannot be built' in only(cfg) and 'unknown' in only(cfg)


def test_concatenated_data_sets_of_different_classes(own):
    cfg, data = own('classification')
    shutil.copytree(data / 'train', data / 'other')
    (data / 'other' / 'circle').rename(data / 'other' / 'disc')
    leaf = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, dict(leaf, data_prefix='other')])
    assert 'ConcatDataset cannot be built: The meta information of the' in '\n'.join(
        data_problems(cfg, ['train_dataloader'])
    )


class Tape:
    """A data set of somebody's own, of no library's kind."""

    def __init__(self, number, corrupt=False):
        self.number, self.corrupt = number, corrupt

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if self.corrupt:
            raise OSError('tape is torn')
        return dict(inputs=index)


def test_data_sets_of_no_librarys_kind(own, said):
    cfg, _ = own('classification')
    DATASETS.register_module(name='Tape', module=Tape, force=True)
    cfg.train_dataloader.dataset = dict(type='Tape', number=20)
    assert data_problems(cfg, ['train_dataloader']) == [] and said == []
    cfg.train_dataloader.dataset.corrupt = True
    assert 'sample 0 failed to load (OSError: tape is torn)' in only(cfg)


def test_annotations_on_remote_storage_are_left_to_the_run(own):
    cfg, _ = own('detection', {'train_dataloader.dataset.ann_file': 'http://host/a.json'})
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset.update(ann_file='a.json', data_root='bucket/', backend_args=dict(backend='http'))
    assert data_problems(cfg, ['train_dataloader']) == []


def test_same_id_twice(own, change_annotations):
    cfg, data = own('detection')
    change_annotations(data, 'train', lambda content: content['annotations'][1].update(id=1))
    assert '1 ids of annotations occur more than once (1)' in only(cfg)


def test_it_is_the_subset_that_is_checked(own):
    """The config takes 4 of 8."""
    cfg, data = own('detection')
    content = json.loads((data / 'annotations' / 'instances_train2017.json').read_text())
    (data / 'train2017' / content['images'][7]['file_name']).unlink()
    assert data_problems(cfg, ['train_dataloader']) == []
    (data / 'train2017' / content['images'][0]['file_name']).unlink()
    assert 'does not exist' in only(cfg)


def test_images_with_channels_first(own):
    """As TIFF files with separate planes are loaded."""
    need_npy_step()
    cfg, data = own('segmentation')
    for image in (data / 'images' / 'training').iterdir():
        np.save(image.with_suffix('.npy'), np.zeros((13, 64, 64), np.float32))
    steps = cfg.train_dataloader.dataset.pipeline
    steps[0] = dict(type='LoadImageFromNpyFile')
    cfg.train_dataloader.dataset.img_suffix = '.npy'
    found = data_problems(cfg, ['train_dataloader'])
    assert (
        '.npy is loaded as (13, 64, 64), channels first, but the pipeline expects (height, width, channels)' in found[0]
    )


def renamed(paths, suffix):
    for path in paths:
        path.rename(path.with_suffix(suffix))


def test_images_with_a_suffix_that_the_data_set_does_not_take(own, said):
    cfg, data = own('classification')
    images = sorted((data / 'train').rglob('*.jpg'))
    renamed(images[::2], '.webp')
    assert data_problems(cfg, ['train_dataloader']) == []
    assert f'{len(images[::2])} images below {data / "train"} end in .webp (' in said[0]
    assert "because the data set has extensions=('.bmp', '.jpeg', " in said[0]
    said.clear()
    cfg.train_dataloader.dataset.extensions = ('.jpg', '.webp')
    assert data_problems(cfg, ['train_dataloader']) == [] and said == []
    cfg.train_dataloader.dataset.pop('extensions')
    renamed(images[1::2], '.gif')
    assert 'but images that end in .gif, .webp: set extensions of the data set, or convert them' in only(cfg)


def test_images_with_another_suffix_in_segmentation(own, said):
    cfg, data = own('segmentation')
    first, second, third, *others = sorted((data / 'images' / 'training').iterdir())
    renamed([first], '.jpeg')
    renamed([second], '.png')
    assert data_problems(cfg, ['train_dataloader']) == []
    assert len(said) == 1 and f'2 images in {data / "images/training"} end in .jpeg, .png' in said[0].replace('//', '/')
    assert "img_suffix='.jpg'" in said[0]
    said.clear()
    first.with_suffix('.jpeg').unlink()
    second.with_suffix('.png').unlink()
    assert data_problems(cfg, ['train_dataloader']) == []
    assert '2 segmentation maps in' in said[0] and 'have no image (*.jpg) in' in said[0]
    renamed([third, *others], '.tiff')
    assert 'no images (*.jpg) in' in only(cfg) and "but 6 that end in .tiff: set img_suffix='.tiff'" in only(cfg)


def test_maps_beside_images_and_coloured_copies(own, said):
    cfg, data = own('segmentation')
    for path in (data / 'annotations' / 'training').iterdir():
        shutil.copy(path, path.with_name(f'{path.stem}_color.png'))
        shutil.copy(path, data / 'images' / 'training')
    assert data_problems(cfg, ['train_dataloader']) == [] and 'end in .png' in said.pop()
    cfg.train_dataloader.dataset.data_prefix.seg_map_path = 'images/training'
    assert data_problems(cfg, ['train_dataloader']) == [] and said == []


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda names: [*names[:2], '', *names[2:]], 'train.txt: lines 3 are empty: remove them'),
        (lambda names: [f'{name}.jpg' for name in names], "names (00000000.jpg, ...) already end in img_suffix='.jpg'"),
        (lambda names: names, None),
    ],
)
def test_list_files_of_segmentation(own, change, message):
    cfg, data = own('segmentation')
    names = sorted(path.stem for path in (data / 'images' / 'training').iterdir())
    (data / 'train.txt').write_text('\n'.join(change(names)) + '\n')
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    if message is None:
        assert data_problems(cfg, ['train_dataloader']) == []
    else:
        assert message in only(cfg)


@pytest.mark.parametrize(
    'encoding, message', [('utf-8-sig', 'begins with a byte order mark: save it as'), ('latin-1', 'is not UTF-8 (')]
)
def test_encodings_of_annotations(own, change_annotations, encoding, message):
    cfg, data = own('detection')
    path = change_annotations(data, 'train', lambda content: content.update(info='#'))
    path.write_bytes(path.read_text().replace('#', '\xe4').encode(encoding))
    assert message in only(cfg) and 'UTF-8 without byte order mark' in only(cfg)


def test_maps_as_jpeg(own):
    cfg, data = own('segmentation')
    for path in list((data / 'annotations' / 'training').iterdir()):
        with Image.open(path) as image:
            image.point(lambda label: 9 * label).convert('L').save(path.with_suffix('.jpg'))
    cfg.train_dataloader.dataset.seg_map_suffix = '.jpg'
    assert 'correct num_classes or the maps. JPEG changes labels: save the maps as PNG' in only(cfg)
