"""Data sets for classification: class folders, list files, file name extensions."""

import json

import pytest
from image_files import renamed
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems
from fcvit_mm.preflight.data.classification import list_file_problems

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
def test_invalid_lines_of_list_files(make_config, change, message, end):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    lines = [
        f'{name}/{path.name} {label}'
        for label, name in enumerate(NAMES)
        for path in sorted((data / 'train' / name).iterdir())
    ]
    lines = [line.replace('000000.jpg', 'my image.jpg') for line in change(lines)]
    for path in (data / 'train').rglob('000000.jpg'):
        path.rename(path.with_name('my image.jpg'))
    # An image that is not in the list.
    (data / 'train' / 'circle' / 'other.jpg').write_bytes(b'x')
    (data / 'train.txt').write_bytes((end.join(lines) + end).encode())
    if message is None:
        assert data_problems(cfg, ['train_dataloader']) == []
    else:
        assert message in only_problem(cfg)


@pytest.mark.parametrize(
    'line, advice',
    [
        ('', 'remove the empty lines'),
        ('a b.jpg,3', "but line 'a b.jpg,3' has a comma before the label: write a space"),
        ('a.jpg\t3', "but line 'a.jpg\\t3' has a tab before the label: write a space"),
        ('a.jpg;3', "but line 'a.jpg;3' has a semicolon before the label: write a space"),
        ('3 a.jpg', "but line '3 a.jpg' has the label in front: write it behind the path"),
        ('a.jpg 3.0', "but line 'a.jpg 3.0' has a label with a decimal point: write 3"),
        ('a.jpg 3,4', "but line 'a.jpg 3,4' has several labels: use MultiLabelDataset and its JSON file"),
        ('a.jpg --1', "but there is 'a.jpg --1': write the number of the class"),
        ('a.jpg \u00b2', "but there is 'a.jpg \u00b2': write the number of the class"),
        ('a.jpg cat', "but there is 'a.jpg cat': write the number of the class, and remove lines such as a heading"),
    ],
)
def test_advice_for_lines_in_another_format(tmp_path, line, advice):
    path = tmp_path / 'list.txt'
    path.write_text(f'a.jpg 0\n{line}\n')
    [problem] = list_file_problems(str(path))
    assert problem.startswith(
        f'{path}: 1 of 2 lines are empty or have no label (lines 2): expected "path label" with an integer label per '
        f'line, {advice}'
    )


@pytest.mark.parametrize(
    'content, message',
    [
        ('\ufeffcircle/000000.jpg 0\n'.encode(), 'train.txt begins with a byte order mark'),
        ('circle/kr\xe4he.jpg 0\n'.encode('latin-1'), 'train.txt is not UTF-8 (invalid continuation byte at byte 9)'),
    ],
)
def test_encoding_of_list_files(make_config, content, message):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    (data / 'train.txt').write_bytes(content)
    assert message in only_problem(cfg)


def test_empty_list_file_and_folder_as_list_file(make_config):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    (data / 'train.txt').write_text('')
    assert only_problem(cfg) == f'train_dataloader: {data / "train.txt"} lists no images'
    (data / 'train.txt').unlink()
    (data / 'train.txt').mkdir()
    assert only_problem(cfg) == (
        f'train_dataloader: ann_file {data / "train.txt"} is a folder, expected a file: add the name of the file, or '
        'leave ann_file empty for folders of classes'
    )


def test_hidden_files_of_operating_systems(make_config):
    cfg, data = make_config('classification')
    for path in list(data.rglob('*.jpg')):
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\26\7')
    (data / 'train' / '.DS_Store').write_bytes(b'x')
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    for name in ('.ipynb_checkpoints', '@eaDir', 'lost+found'):
        (data / 'train' / name).mkdir()
        assert f'the folder {name} is not a class but counts as one: remove it (rm -r ' in only_problem(cfg)
        (data / 'train' / name).rmdir()


def test_label_beyond_64_bits(make_config):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    (data / 'train.txt').write_text(f'circle/000000.jpg {2**63}')
    assert f'gt_label of {data}/train/circle/000000.jpg is {2**63}, expected a number: the place' in only_problem(cfg)


def test_images_with_an_unsupported_extension(make_config, logged):
    cfg, data = make_config('classification')
    images = sorted((data / 'train').rglob('*.jpg'))
    renamed(images[::2], '.webp')
    assert data_problems(cfg, ['train_dataloader']) == []
    assert f'{len(images[::2])} images below {data / "train"} end in .webp (' in logged[0]
    assert "because the data set has extensions=('.bmp', '.jpeg', " in logged[0]
    logged.clear()
    cfg.train_dataloader.dataset.extensions = ('.jpg', '.webp')
    assert data_problems(cfg, ['train_dataloader']) == [] and logged == []
    cfg.train_dataloader.dataset.pop('extensions')
    renamed(images[1::2], '.gif')
    assert 'but images that end in .gif, .webp: set extensions of the data set, or convert them' in only_problem(cfg)


def test_class_names_as_labels(make_config):
    cfg, data = make_config('classification')
    images = sorted((data / 'train').rglob('*.jpg'))
    names = sorted(path.name for path in (data / 'train').iterdir())
    infos = [dict(img_path=str(path.relative_to(data / 'train')), gt_label=[path.parent.name]) for path in images]
    (data / 'train.json').write_text(json.dumps(dict(metainfo=dict(classes=names), data_list=infos)))
    dataset = cfg.train_dataloader.dataset
    dataset.update(type='MultiLabelDataset', ann_file='train.json')
    message = f'is {names[0]!r}, expected a number: the place of the class in metainfo.classes, from 0'
    assert message in only_problem(cfg)


def test_labels_that_disagree_with_the_folders(make_config, logged):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    images = sorted((data / 'train').rglob('*.jpg'))
    lines = [f'{path.relative_to(data / "train")} {4 - NAMES.index(path.parent.name)}' for path in images]
    (data / 'train.txt').write_text('\n'.join(lines))
    assert data_problems(cfg, ['train_dataloader']) == []
    number = sum(path.parent.name != 'square' for path in images)
    assert logged == [
        f'{data / "train.txt"}: {number} of {len(images)} checked images are in the folder of another class than their '
        f"label ({images[0]} has label 4, which is 'triangle' in metainfo.classes): correct the labels, or the order "
        'of the classes'
    ]


def test_images_outside_of_class_folders(make_config, logged):
    cfg, data = make_config('classification')
    train = data / 'train'
    images = sorted(train.rglob('*.jpg'))
    for path in images[:2]:
        path.rename(train / f'{path.parent.name}_{path.name}')
    first = train / f'{images[0].parent.name}_{images[0].name}'
    assert data_problems(cfg, ['train_dataloader']) == []
    assert f'2 images directly in {train} ({first}) are in no folder of a class and are skipped' in logged
    for path in images[2:]:
        path.rename(train / f'{path.parent.name}_{path.name}')
    assert only_problem(cfg) == (
        f'train_dataloader: {len(images)} images are directly in {train} ({first}), and none in a folder below it: '
        'move the images of each class into a folder with its name, or list them in an ann_file'
    )


def test_class_folders_without_images(make_config):
    cfg, data = make_config('classification')
    for path in (data / 'train').rglob('*.jpg'):
        path.unlink()
    (data / 'train' / 'star.tar').touch()
    text = only_problem(cfg)
    assert text.endswith(f' below {data / "train"}, but star.tar: unpack or complete the data')
    (data / 'train' / 'star.tar').unlink()
    assert only_problem(cfg).endswith(f' below {data / "train"}')


def test_class_folders_one_level_too_deep(make_config, logged):
    cfg, data = make_config('classification')
    (data / 'train').rename(data / 'images')
    (data / 'train').mkdir()
    (data / 'images').rename(data / 'train' / 'images')
    assert any('num_classes' in problem for problem in data_problems(cfg, ['train_dataloader']))
    assert (
        f'{data / "train"} has a single folder, images, which is the only class. If the folders in it are the classes '
        f'({", ".join(NAMES)}), set data_prefix to {data / "train" / "images"}'
    ) in logged


def test_class_folders_named_by_numbers(make_config, logged):
    cfg, data = make_config('classification')
    for name, number in zip(NAMES, (1, 2, 9, 10, 11)):
        (data / 'train' / name).rename(data / 'train' / str(number))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert (
        f"{data / 'train'}: the folders are sorted as text, so label 1 is the class '10': predictions are named right, "
        'but their numbers are not the names. Names with leading zeros keep the order of numbers'
    ) in logged


def test_broken_links_to_images_and_classes(make_config, logged):
    """mmpretrain skips them silently."""
    cfg, data = make_config('classification')
    image = sorted((data / 'train').rglob('*.jpg'))[0]
    image.unlink()
    image.symlink_to('/gone.jpg')
    assert only_problem(cfg).startswith(f'train_dataloader: 1 symbolic links below {data / "train"} have no target')
    cfg.custom_hooks = [dict(type='SkipCorruptSamplesHook', limit=0.5)]
    assert data_problems(cfg, ['train_dataloader']) == []
    assert any(f'({image} links to /gone.jpg), so what they stand for would be skipped' in line for line in logged)


def test_images_listed_twice_with_different_labels(make_config, logged):
    cfg, data = make_config('classification', more=LISTS % (NAMES,))
    images = sorted((data / 'train').rglob('*.jpg'))
    for path in images:
        path.rename(data / 'train' / f'{path.parent.name}_{path.name}')
    lines = [f'{path.parent.name}_{path.name} {NAMES.index(path.parent.name)}' for path in images]
    (data / 'train.txt').write_text('\n'.join([*lines, *lines]))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert not any('listed again' in line for line in logged)
    name = f'{images[0].parent.name}_{images[0].name}'
    (data / 'train.txt').write_text('\n'.join([*lines, f'{name} 3']))
    assert data_problems(cfg, ['train_dataloader']) == []
    assert (
        f'{data / "train.txt"}: 1 images are listed again with another label ({data / "train" / name} with 0 and 3): '
        'keep one line for each image'
    ) in logged
