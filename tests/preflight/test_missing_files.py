import os
import unicodedata

import pytest

from fcvit_mm.preflight.missing_files import near_file


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
        ('train/a10.jpg', 'train/a1.jpg', ''),
        ('train/b.jpg', 'train/a.jpg', ''),
        ('train/b.jpg', 'val/a.jpg', ''),
    ],
)
def test_where_a_file_is(tmp_path, there, given, expected):
    path = tmp_path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = near_file(os.path.join(tmp_path, given))
    assert found.startswith(expected.format(root=tmp_path)) and bool(found) == bool(expected)


def test_another_unicode_form(tmp_path):
    (tmp_path / unicodedata.normalize('NFD', 'größe.jpg')).touch()
    found = near_file(str(tmp_path / unicodedata.normalize('NFC', 'größe.jpg')))
    assert found.endswith('the same characters in another Unicode form (NFC or NFD)')


def test_absolute_names_of_another_machine(tmp_path):
    (tmp_path / 'train' / 'sub').mkdir(parents=True)
    image = tmp_path / 'train' / 'sub' / 'a.jpg'
    image.touch()
    assert near_file('/home/jane/data/sub/a.jpg', str(tmp_path / 'train')) == (
        f'{image} exists: names are absolute paths of another machine or folder, remove the folders'
    )
    assert near_file('/home/jane/data/a.jpg', str(tmp_path / 'train')) == ''
    assert near_file(str(tmp_path / 'train' / 'x' / 'b.jpg'), str(tmp_path / 'train')) == ''
