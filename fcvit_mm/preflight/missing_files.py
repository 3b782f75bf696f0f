"""Finding missing files under a similar name or in another place."""

import errno
import os
import os.path as osp
import re
import unicodedata
from itertools import chain
from typing import Iterator, List, Sequence, Tuple
from urllib.parse import unquote

from ..images import walk_entries
from .limits import TimeLimit
from .log import log_warning, shorten

#: Number of folders above the given one in which a file is searched.
LEVELS = 4
#: Seconds for searching folders for broken symbolic links.
LINK_SECONDS = 0.7
#: Suffixes of archives.
ARCHIVES = ('.zip', '.tar', '.tgz', '.tar.gz', '.gz', '.rar', '.7z', '.lmdb')


def path_problem(path: str, is_folder: bool, what: str) -> str:
    """Describe why a path in a config is not a folder or file as required, and what is there; empty if it is.

    Args:
        path (str): The path, as the data set reads it.
        is_folder (bool): Whether it must be a folder.
        what (str): The path, and what it is for, at the beginning of the message.
    """
    if osp.isdir(path) if is_folder else osp.exists(path):
        return ''
    if osp.isfile(path):
        archive = ': unpack it, and give the folder' if path.lower().endswith(ARCHIVES) else ''
        return f'{what} is a file, expected a folder{archive}'
    near = near_file(path.rstrip(os.sep))
    if not near and re.search(r'~|\$', path):
        near = '~ and $ are not replaced here, write the complete path'
    there = path
    while there and not osp.isdir(there):
        there = osp.dirname(there)
    if there and not os.access(there, os.R_OK | os.X_OK):
        return f'{what} cannot be found, because permission to read {there} is missing: change its permissions'
    if not near and osp.abspath(there) != osp.abspath(os.curdir):
        names = sorted(os.listdir(there))
        near = f'{there} contains {shorten(names)}' if names else f'{there} is empty'
    return f'{what} does not exist{f" ({near})" if near else ""}'


def link_problems(folders: Sequence[str], number: int, allowed: float, limit: TimeLimit) -> List[str]:
    """Find symbolic links without a target in folders, which libraries skip silently.

    Args:
        folders (sequence of str): Folders that a data set lists.
        number (int): Number of its samples.
        allowed (float): Fraction of them that may be missing; up to this, a warning is logged.
        limit (TimeLimit): Time limit of all checks.
    """
    entries = chain.from_iterable(map(walk_entries, folders))
    searched = limit.stream(entries, LINK_SECONDS, f'{shorten(folders)}: files searched for broken symbolic links')
    # Editors mark open files by hidden links without a target.
    broken = sorted(
        entry.path
        for entry in searched
        if entry.is_symlink() and not is_hidden(entry.path, folders) and not osp.exists(entry.path)
    )
    if not broken:
        return []
    text = (
        f'{len(broken)} symbolic links below {shorten(folders)} have no target ({broken[0]} links to '
        f'{os.readlink(broken[0])}), so what they stand for would be skipped'
    )
    if len(broken) <= allowed * (number + len(broken)):
        log_warning(text)
        return []
    annex = 'fetch the files with `git annex get`, ' if 'annex/objects' in os.readlink(broken[0]) else ''
    return [f'{text}: {annex}correct the links, copy the files, or remove the links']


def permission_problem(error: Exception) -> str:
    """Describe the file or folder that must not be read; empty for other errors."""
    if not isinstance(error, PermissionError) or not error.filename:
        return ''
    return f'{error.filename} cannot be read, because permission is missing: change its permissions'


def loop_problem(error: Exception) -> str:
    """Describe the symbolic link to a folder above itself that makes a path endless; empty for other errors."""
    if not isinstance(error, OSError) or error.errno != errno.ELOOP or not isinstance(error.filename, str):
        return ''
    parts = error.filename.split(os.sep)
    for number in range(2, len(parts) + 1):
        link = os.sep.join(parts[:number])
        if osp.islink(link) and osp.isdir(link):
            above = osp.join(osp.realpath(link), '')
            if osp.join(osp.realpath(osp.dirname(link)), '').startswith(above):
                return f'{link} is a symbolic link to a folder above it, {osp.realpath(link)}: remove the link'
    return ''


def is_hidden(path: str, folders: Sequence[str]) -> bool:
    """Check whether a file, or a folder between it and one of ``folders``, is hidden."""
    return any(path.startswith(folder) and f'{os.sep}.' in path[len(folder.rstrip(os.sep)) :] for folder in folders)


def near_file(path: str, folder: str = '') -> str:
    """Return, as one sentence, where a missing file is or what is wrong with its name; empty if unknown.

    Args:
        path (str): A file that does not exist: a name joined to the folder of a data set.
        folder (str): The folder of the data set; an absolute name replaces it in ``path``.
    """
    link = _broken_link(path)
    if link:
        return f'{link} is a symbolic link to {os.readlink(link)}, which does not exist: correct it, or copy the data'
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
        return _near_name(osp.join(folder, osp.basename(path)))
    return _near_name(path)


def _candidates(path: str) -> Iterator[Tuple[str, str]]:
    """Yield other places of a file, and what is wrong with the given one."""
    if '\\' in path:
        why = ': names contain backslashes, replace them by /'
        yield path.replace('\\', '/'), why
        yield osp.join(osp.dirname(path), path.rpartition('\\')[2]), why + ' and remove the folders'
        path = path.replace('\\', '/')
    if '~' in path:
        yield osp.expanduser(path[path.index('~') :]), ': ~ is not replaced here, write the complete path'
    if '$' in path:
        yield osp.expandvars(path), ': variables of the environment are not replaced here, write the complete path'
    stripped = os.sep.join(part.strip() for part in path.split(os.sep))
    if stripped != path:
        yield stripped, ': names begin or end with white space, remove it'
    if '"' in path or "'" in path:
        yield path.replace('"', '').replace("'", ''), ': names are in quotation marks, remove them'
    folder, name = osp.split(path)
    first = path.partition(' ')[0]
    if osp.splitext(first)[1]:
        yield first, ': the name is followed by more text, expected one name per line'
    parts = folder.split(os.sep)
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] == parts[index - 1]:
            twice = osp.join(os.sep.join(parts[:index] + parts[index + 1 :]), name)
            yield twice, f': the names begin with the folder {parts[index]!r}, which data_prefix contains, too'
    decoded = unquote(name)
    if decoded != name:
        yield osp.join(folder, decoded), ': names are percent-encoded as in URLs, decode them'
    if '?' in name:
        yield osp.join(folder, name.partition('?')[0]), ': names end in the query of a URL, remove it'
    for _ in range(LEVELS):
        folder = osp.dirname(folder)
        if not folder.strip(os.sep):
            return
        yield osp.join(folder, name), ': correct data_prefix or the names'


def _broken_link(path: str) -> str:
    """Return the symbolic link without a target that a path is or contains; empty if there is none."""
    while path and not osp.exists(path):
        if osp.islink(path):
            return path
        path, before = osp.dirname(path), path
        if path == before:
            break
    return ''


def _near_name(path: str) -> str:
    """Find the file in its folder under a name that differs in case, Unicode form or suffix."""
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
        (lambda each: name.endswith((f'-{each}', f'_{each}')), 'another beginning'),
        (lambda each: bool(stem) and each.startswith(stem) and not each[len(stem) :][:1].isalnum(), 'another ending'),
        (lambda each: stem.startswith(f'{osp.splitext(each)[0]}_') and each[:1] != '.', 'another ending'),
    ):
        found = next((each for each in names if each != name and same(each)), '')
        if found and not (osp.splitext(name)[1] and osp.isdir(osp.join(folder, found))):
            archive = ': unpack it' if found.lower().endswith(ARCHIVES) else ''
            return f'{osp.join(folder, found)} exists, with {why}{archive}'
    return ''
