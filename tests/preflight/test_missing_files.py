import errno
import os
import unicodedata

import pytest
from problems import only_problem

from fcvit_mm.preflight.limits import TimeLimit
from fcvit_mm.preflight.missing_files import link_problems, near_file, path_problem


@pytest.mark.parametrize(
    'there, given, expected',
    [
        ('train/a.jpg', 'train/train/a.jpg', "{root}/train/a.jpg exists: the names begin with the folder 'train'"),
        ('train/b/a.jpg', 'train/b\\a.jpg', '{root}/train/b/a.jpg exists: names contain backslashes'),
        ('train/a.jpg', 'train/C:\\data\\a.jpg', '{root}/train/a.jpg exists: names contain backslashes'),
        ('a.jpg', 'train/a.jpg', '{root}/a.jpg exists: correct data_prefix'),
        ('train/a.JPG', 'train/A.jpg', '{root}/train/a.JPG exists, with another case of letters'),
        ('train/a.png', 'train/a.jpg', '{root}/train/a.png exists, with another suffix'),
        ('train/a_mask.png', 'train/a.png', '{root}/train/a_mask.png exists, with another ending'),
        ('train/a.jpg', 'train/https://host/a.jpg', 'The name is a URL: download the images'),
        ('train/a b.jpg', 'train/a%20b.jpg', '{root}/train/a b.jpg exists: names are percent-encoded as in URLs'),
        ('train/a.jpg', 'train/a.jpg ', '{root}/train/a.jpg exists: names begin or end with white space'),
        ('train/a.jpg', 'train/a.jpg?v=1', '{root}/train/a.jpg exists: names end in the query of a URL'),
        ('train/a.jpg', 'train/"a.jpg"', '{root}/train/a.jpg exists: names are in quotation marks, remove them'),
        ('train/a.jpg', 'train/a.jpg masks/a.png', '{root}/train/a.jpg exists: the name is followed by more text'),
        ('train.zip', 'train', '{root}/train.zip exists, with another suffix: unpack it'),
        ('Train/a.jpg', 'train', '{root}/Train exists, with another case of letters'),
        ('train/a/b.txt', 'train/a.txt', ''),
        ('train/a.jpg', 'train/a_jpg.rf.0a1b2c.jpg', '{root}/train/a.jpg exists, with another ending'),
        ('train/a.jpg', 'train/0a1b2c-a.jpg', '{root}/train/a.jpg exists, with another beginning'),
        ('train/a10.jpg', 'train/a1.jpg', ''),
        ('train/b.jpg', 'train/a.jpg', ''),
        ('train/b.jpg', 'val/a.jpg', ''),
    ],
)
def test_file_with_a_similar_path_is_suggested(tmp_path, there, given, expected):
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = near_file(os.path.join(tmp_path, given))
    assert found.startswith(expected.format(root=tmp_path)) and bool(found) == bool(expected)


def test_file_name_in_another_unicode_form(tmp_path):
    (tmp_path / unicodedata.normalize('NFD', 'größe.jpg')).touch()
    found = near_file(str(tmp_path / unicodedata.normalize('NFC', 'größe.jpg')))
    assert found.endswith('the same characters in another Unicode form (NFC or NFD)')


def test_absolute_paths_of_another_machine(tmp_path):
    (tmp_path / 'train' / 'sub').mkdir(parents=True)
    image = tmp_path / 'train' / 'sub' / 'a.jpg'
    image.touch()
    assert near_file('/home/jane/data/sub/a.jpg', str(tmp_path / 'train')) == (
        f'{image} exists: names are absolute paths of another machine or folder, remove the folders'
    )
    assert near_file('/home/jane/data/b.jpg', str(tmp_path / 'train')) == ''
    (tmp_path / 'train' / 'c.jpg').touch()
    assert near_file('/upload/1/0a1b2c-c.jpg', str(tmp_path / 'train')) == (
        f'{tmp_path / "train" / "c.jpg"} exists, with another beginning'
    )
    assert near_file(str(tmp_path / 'train' / 'x' / 'b.jpg'), str(tmp_path / 'train')) == ''


def test_links_without_a_target(tmp_path):
    (tmp_path / 'a.jpg').symlink_to('/gone/a.jpg')
    (tmp_path / 'b').symlink_to('/gone/b')
    for path in ('a.jpg', 'b/c/d.jpg'):
        link = tmp_path / path.partition('/')[0]
        assert near_file(str(tmp_path / path)) == (
            f'{link} is a symbolic link to /gone/{link.name}, which does not exist: correct it, or copy the data'
        )


@pytest.mark.parametrize(
    'path, is_folder, expected',
    [
        ('data/train', True, ''),
        ('data/list.txt', False, ''),
        ('data/val', True, 'data_root x does not exist ({root}/data contains list.txt, pack.zip, train)'),
        ('data/new/val', True, 'data_root x does not exist ({root}/data contains list.txt, pack.zip, train)'),
        ('data/train/val', True, 'data_root x does not exist ({root}/data/train is empty)'),
        ('data/list.txt', True, 'data_root x is a file, expected a folder'),
        ('data/pack.zip', True, 'data_root x is a file, expected a folder: unpack it, and give the folder'),
        ('data/train ', True, 'data_root x does not exist ({root}/data/train exists: names begin or end with white '),
        ('~/train', True, 'data_root x does not exist ({root}/home/train exists: ~ is not replaced here, write the '),
        ('$PLACE/train', True, 'data_root x does not exist ({root}/home/train exists: variables of the environment '),
        ('$PLACE/val', True, 'data_root x does not exist (~ and $ are not replaced here, write the complete path)'),
        ('lost', True, 'data_root x does not exist'),
    ],
)
def test_missing_paths_in_a_config(tmp_path, monkeypatch, path, is_folder, expected):
    for folder in ('data/train', 'home/train'):
        (tmp_path / folder).mkdir(parents=True)
    for name in ('list.txt', 'pack.zip'):
        (tmp_path / 'data' / name).touch()
    monkeypatch.chdir(tmp_path)
    for name in ('HOME', 'PLACE'):
        monkeypatch.setenv(name, str(tmp_path / 'home'))
    given = path if path[0] in '~$l' else str(tmp_path / path)
    found = path_problem(given, is_folder, 'data_root x')
    assert found.startswith(expected.format(root=tmp_path)) and bool(found) == bool(expected)


def test_broken_links_below_a_folder(tmp_path, logged):
    (tmp_path / 'inner').mkdir()
    for number in range(9):
        (tmp_path / 'inner' / f'{number}.jpg').touch()
    (tmp_path / 'again').symlink_to(tmp_path)
    (tmp_path / 'good.jpg').symlink_to('inner/0.jpg')
    assert link_problems([str(tmp_path)], 9, 0.0, TimeLimit()) == []
    (tmp_path / 'inner' / 'a.jpg').symlink_to('/gone/a.jpg')
    text = (
        f'1 symbolic links below {tmp_path} have no target ({tmp_path / "inner" / "a.jpg"} links to /gone/a.jpg), so '
        'what they stand for would be skipped'
    )
    assert link_problems([str(tmp_path)], 9, 0.0, TimeLimit()) == [
        f'{text}: correct the links, copy the files, or remove the links'
    ]
    (tmp_path / '.#b.jpg').symlink_to('jane@host.4711')  # of an editor
    (tmp_path / '.git').mkdir()
    (tmp_path / '.git' / 'c.jpg').symlink_to('/gone/c.jpg')
    assert logged == [] and link_problems([str(tmp_path)], 9, 0.1, TimeLimit()) == [] and logged == [text]
    (tmp_path / '0.jpg').symlink_to('.git/annex/objects/x1/y2/SHA256-s9--aa.jpg')
    (line,) = link_problems([str(tmp_path) + os.sep], 9, 0.0, TimeLimit())
    assert line.startswith('2 symbolic links below ')
    assert line.endswith(
        'skipped: fetch the files with `git annex get`, correct the links, copy the files, or remove the links'
    )


def test_link_to_a_parent_folder(make_config):
    cfg, data = make_config('classification')
    link = sorted((data / 'train').iterdir())[0] / 'up'
    link.symlink_to('..')
    above = (data / 'train').resolve()
    found = f'train_dataloader: {link} is a symbolic link to a folder above it, {above}: remove the link'
    assert only_problem(cfg) == found


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # tests may run as root, who may read everything
    assert path_problem(f'{tmp_path}/a/b', True, 'folder x') == (
        f'folder x cannot be found, because permission to read {tmp_path} is missing: change its permissions'
    )


@pytest.mark.parametrize(
    ('task', 'kind', 'name'),
    [
        ('classification', 'mmpretrain.datasets.CustomDataset', 'train'),
        ('detection', 'mmdet.datasets.CocoDataset', 'annotations/instances_train2017.json'),
    ],
)
def test_data_without_permission(make_config, monkeypatch, task, kind, name):
    cfg, data = make_config(task)

    def refuse(dataset):
        raise PermissionError(errno.EACCES, 'Permission denied', f'{data}/{name}')

    monkeypatch.setattr(f'{kind}.load_data_list', refuse)
    assert only_problem(cfg) == (
        f'train_dataloader: {data}/{name} cannot be read, because permission is missing: change its permissions'
    )
