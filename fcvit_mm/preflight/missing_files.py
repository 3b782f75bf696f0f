"""Files that do not exist: what the same file is called, or where it is."""

import os
import os.path as osp
import unicodedata
from typing import Iterator, Tuple
from urllib.parse import unquote

#: Folders above the given one in which a file is searched.
LEVELS = 4


def near_file(path: str, folder: str = '') -> str:
    """Return, as one sentence, where a missing file is or what is wrong with its name; empty if unknown.

    Args:
        path (str): A file that does not exist, as a data set joins it from its folder and a name.
        folder (str): The folder, which an absolute name replaces.
    """
    for scheme in ('https:/', 'http:/', 's3:/', 'gs:/'):
        if f'/{scheme}' in f'/{path}':
            return 'The name is a URL: download the images and give the names of the files'
    for found, why in _candidates(path):
        if osp.exists(found):
            return f'{found} exists{why}'
    if folder and not osp.abspath(path).startswith(osp.join(osp.abspath(folder), '')):
        parts = path.strip(os.sep).split(os.sep)
        for number in range(1, len(parts)):
            found = osp.join(folder, *parts[-number:])
            if osp.exists(found):
                return f'{found} exists: names are absolute paths of another machine or folder, remove the folders'
    return _near_name(path)


def _candidates(path: str) -> Iterator[Tuple[str, str]]:
    """Yield other places of a file, and what is wrong with the given one."""
    if '\\' in path:
        why = ': names contain backslashes, replace them by /'
        yield path.replace('\\', '/'), why
        yield osp.join(osp.dirname(path), path.rpartition('\\')[2]), why + ' and remove the folders'
        path = path.replace('\\', '/')
    folder, name = osp.split(path)
    parts = folder.split(os.sep)
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] == parts[index - 1]:
            twice = osp.join(os.sep.join(parts[:index] + parts[index + 1 :]), name)
            yield twice, f': the names begin with the folder {parts[index]!r}, which data_prefix contains, too'
    decoded = unquote(name)
    if decoded != name:
        yield osp.join(folder, decoded), ': names are percent-encoded as in URLs, decode them'
    if name.strip() != name:
        yield osp.join(folder, name.strip()), ': names begin or end with white space, remove it'
    if '?' in name:
        yield osp.join(folder, name.partition('?')[0]), ': names end in the query of a URL, remove it'
    for _ in range(LEVELS):
        folder = osp.dirname(folder)
        if not folder.strip(os.sep):
            return
        yield osp.join(folder, name), ': correct data_prefix or the names'


def _near_name(path: str) -> str:
    """Find the file in its folder under a name that differs in case, Unicode form, suffix or ending."""
    folder, name = osp.split(path)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ''
    stem = osp.splitext(name)[0]

    def unified(text: str) -> str:
        return unicodedata.normalize('NFC', text)

    for same, why in (
        (lambda each: unified(each) == unified(name), 'the same characters in another Unicode form (NFC or NFD)'),
        (lambda each: unified(each).casefold() == unified(name).casefold(), 'another case of letters'),
        (lambda each: osp.splitext(each)[0] == stem, 'another suffix'),
        (lambda each: bool(stem) and each.startswith(stem) and not each[len(stem)].isalnum(), 'another ending'),
    ):
        found = next((each for each in names if same(each)), '')
        if found:
            return f'{osp.join(folder, found)} exists, with {why}'
    return ''
