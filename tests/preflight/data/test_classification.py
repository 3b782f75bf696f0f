"""Folders of classes, lists of images, suffixes."""

import json

import pytest
from image_files import renamed
from problems import only_problem

from fcvit_mm.preflight.checks import data_problems

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
        assert message in only_problem(cfg)


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
    assert message in only_problem(cfg)


def test_what_systems_leave_behind(own):
    cfg, data = own('classification')
    for path in list(data.rglob('*.jpg')):
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\26\7')
    (data / 'train' / '.DS_Store').write_bytes(b'x')
    assert data_problems(cfg, ['train_dataloader', 'val_dataloader']) == []
    (data / 'train' / '.ipynb_checkpoints').mkdir()
    found = data_problems(cfg, ['train_dataloader'])
    assert len(found) == 1 and 'the folder .ipynb_checkpoints is not a class but counts as one: remove' in found[0]


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
    assert 'but images that end in .gif, .webp: set extensions of the data set, or convert them' in only_problem(cfg)


def test_labels_that_are_names(own):
    cfg, data = own('classification')
    images = sorted((data / 'train').rglob('*.jpg'))
    names = sorted(path.name for path in (data / 'train').iterdir())
    infos = [dict(img_path=str(path.relative_to(data / 'train')), gt_label=[path.parent.name]) for path in images]
    (data / 'train.json').write_text(json.dumps(dict(metainfo=dict(classes=names), data_list=infos)))
    dataset = cfg.train_dataloader.dataset
    dataset.update(type='MultiLabelDataset', ann_file='train.json')
    message = f'is {names[0]!r}, expected a number: the place of the class in metainfo.classes, from 0'
    assert message in only_problem(cfg)
