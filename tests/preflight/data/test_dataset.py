"""Data sets that the library cannot build or load, for all tasks."""

import gzip
import json

import pytest
from harness import LIBRARIES
from mmengine.registry import DATASETS
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems


@pytest.mark.parametrize('task', LIBRARIES)
def test_classes_given_as_a_string(make_config, task, tmp_path):
    """Either a comma is missing, or it is the path of a file of names."""
    cfg, _ = make_config(task)
    dataset = cfg.train_dataloader.dataset
    names = dataset.get('metainfo')
    dataset.metainfo = dict(names or {}, classes='circle')
    assert only_problem(cfg) == (
        "train_dataloader: metainfo.classes is the text 'circle', which is no file, expected a sequence of names or "
        "the path of a file with one name per line: write classes=('circle',), with a comma, for a single class"
    )
    if task == 'detection':
        (tmp_path / 'names.txt').write_text('\n'.join(names['classes']))
        dataset.metainfo.classes = str(tmp_path / 'names.txt')
        assert data_problems(cfg, ['train_dataloader']) == []
        (tmp_path / 'names.txt').write_text('\n'.join([*names['classes'], '']) + '\n')
        assert only_problem(cfg) == (
            f'train_dataloader: the file {tmp_path / "names.txt"} has an empty line, which counts as a class: remove it'
        )
        dataset.metainfo.classes = ('circle', ' ')
        assert only_problem(cfg) == (
            'train_dataloader: metainfo.classes has an empty name, which counts as a class: remove it'
        )


def test_only_the_selected_subset_is_checked(make_config):
    """The config selects 4 of 8 images."""
    cfg, data = make_config('detection')
    content = json.loads((data / 'annotations' / 'instances_train2017.json').read_text())
    (data / 'train2017' / content['images'][7]['file_name']).unlink()
    assert data_problems(cfg, ['train_dataloader']) == []
    (data / 'train2017' / content['images'][0]['file_name']).unlink()
    assert 'does not exist' in only_problem(cfg)


@pytest.mark.parametrize('kind', ['CocoDataset', 'VOCDataset'])
def test_data_sets_without_the_file_that_lists_images(make_config, kind):
    """As where a wrapper was put around a data set, whose settings stayed outside."""
    cfg, _ = make_config('detection')
    for empty in ({}, dict(ann_file=''), dict(ann_file=None)) if kind == 'CocoDataset' else ({},):
        cfg.train_dataloader.dataset = dict(type=kind, metainfo=cfg.train_dataloader.dataset.metainfo, **empty)
        assert only_problem(cfg) == f'train_dataloader: {kind} has no ann_file: give the file that lists its images'


class Tape:
    """A user's data set, which inherits from no class of the libraries."""

    def __init__(self, number, corrupt=False):
        self.number, self.corrupt = number, corrupt

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if self.corrupt:
            raise OSError('tape is torn')
        return dict(inputs=index)


def test_users_data_sets(make_config, logged):
    cfg, _ = make_config('classification')
    DATASETS.register_module(name='Tape', module=Tape, force=True)
    cfg.train_dataloader.dataset = dict(type='Tape', number=20)
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
    cfg.train_dataloader.dataset.corrupt = True
    assert 'sample 0 failed to load (OSError: tape is torn)' in only_problem(cfg)


def test_data_sets_without_arguments(make_config):
    cfg, _ = make_config('classification')
    blank = type('Blank', (), dict(__len__=lambda self: 20, __getitem__=lambda self, index: dict(inputs=index)))
    DATASETS.register_module(name='Blank', module=blank, force=True)
    cfg.train_dataloader.dataset = dict(type='Blank')
    assert data_problems(cfg, ['train_dataloader']) == []
    cfg.train_dataloader.dataset.number = 5
    assert only_problem(cfg) == 'train_dataloader: Blank cannot be built: Blank() takes no arguments'


@pytest.mark.parametrize(
    'encoding, message', [('utf-8-sig', 'begins with a byte order mark: save it as'), ('latin-1', 'is not UTF-8 (')]
)
def test_encoding_of_annotation_files(make_config, change_annotations, encoding, message):
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', lambda content: content.update(info='#'))
    path.write_bytes(path.read_text().replace('#', '\xe4').encode(encoding))
    assert message in only_problem(cfg) and 'UTF-8 without byte order mark' in only_problem(cfg)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(metainfo=['circle', 'cross']), "metainfo is ['circle', 'cross'], expected a dict: write metainfo=dict("),
        (
            dict(metainfo=dict(CLASSES=('circle',))),
            'metainfo has the key CLASSES, which nothing reads: call it',
        ),
        (
            dict(metainfo=dict(classes={'circle'})),
            'metainfo.classes is a set, expected a sequence of names, whose order numbers the classes: write a tuple',
        ),
        (dict(metainfo=dict(classes=5)), 'metainfo.classes is 5, expected a sequence of names: write a tuple'),
        (dict(metainfo=dict(classes=[None, 'a'])), 'metainfo.classes has None, expected names'),
        (dict(metainfo=dict(classes=[['circle']])), "metainfo.classes has ['circle'], expected names"),
        (dict(metainfo=dict(classes=())), 'metainfo.classes is (), expected the names of the classes'),
        (dict(metainfo=dict(palette=7)), 'metainfo.palette is 7, expected a list of colors [red, green, blue]'),
        (dict(data_prefix=['img']), "data_prefix is ['img'], expected a dict, such as data_prefix=dict(img='images')"),
        (dict(data_prefix=dict(img=['a', 'b'])), "data_prefix.img is ['a', 'b'], expected a path"),
        (dict(data_root=['a', 'b']), "data_root is ['a', 'b'], expected a path"),
        (dict(ann_file=5), 'ann_file is 5, expected a path'),
        (dict(indices='all'), "indices is 'all', expected a number of samples, or a list of their indices"),
        (dict(indices=[0, 'a']), "indices is [0, 'a'], expected a number of samples, or a list of their indices"),
        (dict(indices=[0, 99]), 'indices has 99, but there are 8 samples (0 to 7)'),
        (dict(filter_cfg=dict(min_size=None)), "instances of 'int' and 'NoneType' (min_size=None): correct the data"),
        (dict(img_suffix=5), "img_suffix is 5, expected the end of a name, such as '.png'"),
        (dict(backend_args='local'), "backend_args is 'local', expected a dict or None"),
        (dict(filter_cfg=True), 'filter_cfg is True, expected a dict or None'),
        (dict(ann_file=['a.json', 'b.json']), 'ann_file is a list of 2 files, expected one: use a ConcatDataset'),
        (
            dict(data_root='http://host/data'),
            'data_root is http://host/data, but no folder is read by HTTP: download it and give its path',
        ),
        (dict(extensions='.jpg'), "extensions is the text '.jpg', expected a sequence: write extensions=('.jpg',), "),
        (
            dict(img_suffix='jpg'),
            "img_suffix is 'jpg', expected with a dot, because it replaces the end of a name: write",
        ),
        (
            dict(img_suffix='.jpg', seg_map_suffix='PNG'),
            "seg_map_suffix is 'PNG', expected with a dot, because it repla",
        ),
        (dict(img_suffix=('.jpg', '.png')), "img_suffix is ('.jpg', '.png'), expected one suffix: use a ConcatDataset"),
    ],
)
def test_settings_with_a_wrong_type(make_config, settings, message):
    cfg, _ = make_config('segmentation' if 'img_suffix' in settings else 'detection')
    dataset = dict(cfg.train_dataloader.dataset)
    dataset.update(settings)
    cfg.train_dataloader = dict(cfg.train_dataloader)
    cfg.train_dataloader.dataset = dataset
    assert message in only_problem(cfg)


@pytest.mark.parametrize('pack, kind', [(gzip.compress, 'gzip'), (lambda text: b'PK\3\4\xff' + text, 'zip')])
def test_compressed_annotation_files(make_config, change_annotations, pack, kind):
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', lambda content: None)
    path.write_bytes(pack(path.read_bytes()))
    assert only_problem(cfg) == f'train_dataloader: {path} is compressed ({kind}): unpack it'


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            dict(type='XMLDataset', ann_subdir='', img_subdir=''),
            'json begins with \'{"info": {"descripti\', but XMLDataset reads a list of names, one per line: give the '
            'list (ImageSets/Main/*.txt of VOC), or for COCO format type="CocoDataset"',
        ),
        (
            dict(type='CrowdHumanDataset'),
            "a sample lacks 'ID': correct the file, or the type of the data set, which reads another format",
        ),
        (dict(indices=0), "skips all 8 samples (filter_cfg={'filter_empty_gt': True, 'min_size': 32}); indices=0."),
        (
            dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='Mosaic', img_scale=(32, 32))]),
            "AssertionError: assert 'mix_results' in results (raised in mmdet). This step combines several images: "
            'wrap the data set in MultiImageMixDataset, whose own pipeline contains the step, or use CachedMosaic',
        ),
    ],
)
def test_settings_that_do_not_fit_the_data(make_config, settings, message):
    cfg, _ = make_config('detection')
    cfg.train_dataloader.dataset.update(settings)
    assert message in only_problem(cfg)


def test_classes_that_the_data_set_does_not_have(make_config):
    cfg, _ = make_config('segmentation', {'train_dataloader.dataset.type': 'LoveDADataset'})
    assert only_problem(cfg) == (
        "train_dataloader: metainfo.classes has 'circle', 'cross', 'square', 'star', 'triangle', but LoveDADataset can "
        'only select from its own 7 classes (background, building, road, water, barren, ...): write their names, or '
        'set type="BaseSegDataset" for other classes'
    )


def test_data_set_that_is_none(make_config):
    cfg, _ = make_config('detection')
    cfg.train_dataloader.dataset = None
    assert only_problem(cfg) == 'train_dataloader: the data set is None: give a dict with its type and settings'


def test_duplicate_class_names_are_a_warning(make_config, logged):
    names = ('background', 'circle', 'circle', 'square', 'star', 'triangle')
    cfg, _ = make_config('segmentation', {'train_dataloader.dataset.metainfo.classes': names})
    assert data_problems(cfg, ['train_dataloader']) == []
    assert (
        "BaseSegDataset: metainfo.classes has 'circle' more than once (labels 1, 2), which are learned as different "
        'classes: correct the names, unless this is intended'
    ) in logged


def test_duplicate_class_names_of_a_library_are_not_reported(make_config, logged):
    """ImageNet has two cranes."""
    cfg, data = make_config('classification', {'train_dataloader.dataset.type': 'ImageNet'})
    images = sorted(path.relative_to(data / 'train') for path in (data / 'train').glob('*/*'))
    (data / 'train.txt').write_text(''.join(f'{path} 0\n' for path in images))
    cfg.train_dataloader.dataset.update(data_root=str(data), data_prefix='train', ann_file='train.txt')
    (problem,) = data_problems(cfg, ['train_dataloader'])
    assert 'has 1000 classes' in problem and not [line for line in logged if 'more than once' in line]


def test_data_prefix_that_is_a_string(make_config):
    cfg, _ = make_config('detection')
    cfg.train_dataloader.dataset.data_prefix = 'train2017/'
    assert only_problem(cfg).endswith("data_prefix is 'train2017/', expected a dict, such as dict(img='train2017/')")


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('width', '64', "8 of 8 images have a width that is not a number, such as '64' (ids "),
        ('height', None, '8 of 8 images have a height that is not a number, such as None (ids '),
        ('file_name', 7, '8 of 8 images have a file_name that is not text, such as 7 (ids '),
    ],
)
def test_image_entries_with_a_wrong_type(make_config, change_annotations, key, value, words):
    cfg, data = make_config('detection')
    path = change_annotations(
        data, 'train', lambda content: [image.update({key: value}) for image in content['images']]
    )
    assert only_problem(cfg).startswith(f'train_dataloader: {path}: {words}')


@pytest.mark.parametrize(
    ('task', 'folder', 'given', 'key'),
    [('classification', 'train', 'img', 'img_path'), ('detection', 'train2017', 'img_path', 'img')],
)
def test_data_prefix_with_the_key_of_another_library(make_config, task, folder, given, key):
    cfg, _ = make_config(task)
    dataset = dict(cfg.train_dataloader.dataset, data_prefix={given: folder})
    cfg.train_dataloader = dict(cfg.train_dataloader, dataset=dataset)
    assert only_problem(cfg) == (
        f"train_dataloader: data_prefix has the key '{given}', but {dataset['type']} reads '{key}': write "
        f'data_prefix=dict({key}=...)'
    )


def test_palette_with_another_number_of_colors(make_config):
    cfg, _ = make_config('segmentation')
    cfg.train_dataloader.dataset.metainfo.palette = [[1, 2, 3]]
    assert only_problem(cfg) == (
        'train_dataloader: metainfo.palette has 1 colors, expected one for each of the 6 classes: complete it, or '
        'remove it'
    )


@pytest.mark.parametrize(('content', 'kind'), [([dict(images=[])], 'list'), ('abc', 'str'), (5, 'int')])
def test_annotation_file_that_is_no_dict(make_config, change_annotations, content, kind):
    cfg, data = make_config('detection')
    path = change_annotations(data, 'train', lambda content: None)
    path.write_text(json.dumps(content))
    assert f'{path} is a {kind}, expected a dict with images, annotations, categories: export it' in only_problem(cfg)
