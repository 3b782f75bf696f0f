"""Finding images in files and folders by the endings of their names."""

import os
from typing import Callable, Iterable, Iterator, List, Optional, Tuple

from .opening import ImageError, PathLike
from .reading import log_once

#: Suffixes of the images that the inferencers of the three libraries accept.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
#: Suffixes of arrays, which mmseg's ``LoadImageFromNpyFile`` reads; in a folder they are used if there are no images.
ARRAY_SUFFIXES = ('.npy',)
#: Suffixes of other images, which the libraries do not read from a folder.
OTHER_SUFFIXES = ('.gif', '.jfif', '.avif', '.jp2', '.heic', '.heif', '.jxl')
#: Suffixes of videos.
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def find_images(path: PathLike, recursive: bool = False) -> List[str]:
    """Find the images of a path given by a user.

    Args:
        path (str | os.PathLike): An image, or a folder of images.
        recursive (bool): Also find those in folders below it.

    Returns:
        list[str]: Sorted paths, at least one.

    Raises:
        ImageError: The path does not exist, is not an image by its name, or is a folder without images.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        found = list_images(path, recursive=recursive) or list_images(path, ARRAY_SUFFIXES, recursive)
        if not found and not os.access(path, os.R_OK | os.X_OK):
            raise ImageError(f'{path} cannot be read, because permission is missing: change its permissions')
        if not found:
            where = 'below' if recursive else 'in'
            raise ImageError(f'no images ({", ".join(IMAGE_SUFFIXES)}) {where} {path}: give a folder of images')
        return found
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image or a folder of images')
    if not path.lower().endswith(IMAGE_SUFFIXES + ARRAY_SUFFIXES):
        raise ImageError(
            f'{path} does not have the name of an image, expected one that ends in {", ".join(IMAGE_SUFFIXES)}'
        )
    return [path]


def find_inputs(path: PathLike) -> Tuple[List[str], Optional[str]]:
    """Find the images of a path, or a video.

    Args:
        path (str | os.PathLike): An image, a video, or a folder of images.

    Returns:
        tuple[list[str], str | None]: Paths of images, and that of a video; one of them is empty.

    Raises:
        ImageError: It does not exist, is neither, or a folder without images.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return find_images(path), None
    if not os.path.isfile(path):
        raise ImageError(f'{path} does not exist: give an image, a folder of images or a video')
    if path.lower().endswith(VIDEO_SUFFIXES):
        return [], path
    if path.lower().endswith(IMAGE_SUFFIXES + ARRAY_SUFFIXES):
        return [path], None
    raise ImageError(
        f'{path} has the name of neither an image ({", ".join(IMAGE_SUFFIXES)}) nor a video '
        f'({", ".join(VIDEO_SUFFIXES)}): give a file that ends in one of these'
    )


def list_images(folder: PathLike, suffixes: Iterable[str] = IMAGE_SUFFIXES, recursive: bool = True) -> List[str]:
    """List the images in a folder.

    Args:
        folder (str | os.PathLike): The folder; symbolic links are followed, except to folders above them.
        suffixes (Iterable[str]): Endings of their names, in small letters.
        recursive (bool): Also list those in folders below it.

    Returns:
        list[str]: Sorted paths; hidden files are no images.
    """
    suffixes = tuple(suffixes)
    return sorted(
        entry.path
        for entry in walk_entries(folder, recursive)
        # Reading a pipe would block. A link without a target is listed, and reported when it is read.
        if entry.name.lower().endswith(suffixes)
        and not entry.name.startswith('.')
        and (_holds(entry.is_file) or not os.path.exists(entry.path))
    )


def walk_entries(folder: PathLike, recursive: bool = True) -> Iterator['os.DirEntry[str]']:
    """Yield all entries of a folder and of folders below it except the folders, such as files and broken links.

    Only the folders are read, because entries know their kind. Folders that cannot be read are skipped,
    with a message if permission is missing.

    Args:
        folder (str | os.PathLike): The folder; symbolic links are followed, except to folders above them: their
            entries would come dozens of times.
        recursive (bool): Also yield those in folders below it.
    """
    try:
        entries = os.scandir(os.fspath(folder))
    except PermissionError:
        log_once(f'{folder} cannot be read, because permission is missing: the files in it are skipped.')
        return
    except OSError:
        return
    with entries:
        for entry in entries:
            if not _holds(entry.is_dir):
                yield entry
            elif recursive and not _is_loop(os.fspath(folder), entry.name):
                yield from walk_entries(entry.path)


def _holds(check: Callable[[], bool]) -> bool:
    """Return the result of a check of an entry; ``False`` for a link to itself, or into an unreadable folder."""
    try:
        return check()
    except OSError:
        return False


def _is_loop(parent: str, name: str) -> bool:
    """Check whether a folder is a symbolic link to the folder it is in, or to one above."""
    path = os.path.join(parent, name)
    return os.path.islink(path) and os.path.join(os.path.realpath(parent), '').startswith(
        os.path.join(os.path.realpath(path), '')
    )
