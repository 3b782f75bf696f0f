"""Finding the images to predict: files, folders, lists and videos, as numbers from 0."""

import logging
import os
import os.path as osp
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import Dict, List, Optional, Sequence, Tuple

from mmengine.logging import print_log

from ...images import (
    OTHER_SUFFIXES,
    VIDEO_SUFFIXES,
    ImageError,
    find_images,
    find_inputs,
    list_images,
    open_video,
    report_lost_frames,
)

#: Suffixes of files that list images, one per line.
LIST_SUFFIXES = ('.txt', '.lst')


class ImageList:
    """The images to predict, numbered from 0.

    Args:
        paths (Sequence[str]): Images and videos.
        frames (dict): Number of frames of each video.
        folders (Sequence[str]): Folders that were searched for images.

    Attributes:
        root (str): Common folder of all images, which names are relative to.
    """

    def __init__(self, paths: Sequence[str], frames: Dict[str, int], folders: Sequence[str] = ()) -> None:
        self.paths = list(paths)
        self.folders = list(folders)
        self.frames = frames
        self.ends = list(accumulate(frames.get(path, 1) for path in self.paths)) if frames else []
        self.root = osp.commonpath([osp.dirname(osp.abspath(path)) for path in self.paths])
        names = {self._relative(path) for path in self.paths}
        stems = Counter(osp.splitext(name)[0] for name in names)
        self.doubles = {stem for stem, count in stems.items() if count > 1 or stem in names}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else len(self.paths)

    def __getitem__(self, number: int) -> Tuple[str, Optional[int]]:
        """Return the path of an image, or the path of a video and a frame number."""
        if not self.ends:
            return self.paths[number], None
        index = bisect_right(self.ends, number)
        path = self.paths[index]
        return path, number - (self.ends[index - 1] if index else 0) if path in self.frames else None

    def _relative(self, path: str) -> str:
        return osp.relpath(osp.abspath(path), self.root).replace(os.sep, '/')

    def name(self, number: int) -> str:
        """Return an image's path below ``root``; a frame is named like an image in a folder named like the video."""
        path, frame = self[number]
        return self._relative(path) if frame is None else f'{self._relative(path)}/{frame:06d}.png'

    def file_name(self, name: str) -> str:
        """Return the file name for the results of an image, without suffix; no other image has the same."""
        stem = osp.splitext(name)[0]
        return name if stem in self.doubles else stem


def list_inputs(inputs: Sequence[str]) -> ImageList:
    """Find the images of the given inputs.

    Args:
        inputs (Sequence[str]): Images, folders (searched recursively), videos, and ``.txt`` or ``.lst`` files that list
            such paths, one per line, relative to the folder of the file. Duplicates are removed.

    Returns:
        ImageList: In the order of the inputs; folders sorted.

    Raises:
        ImageError: There is no input; one does not exist or has no image; a video has no frame that can be decoded.
    """
    paths: Dict[str, str] = {}  # as given, by absolute path
    folders: List[str] = []
    for given in inputs:
        if osp.isdir(given):
            found = find_images(given, recursive=True)
            folders.append(given)
        elif given.lower().endswith(LIST_SUFFIXES):
            found = []
            for path in _listed(given):
                is_folder = osp.isdir(path)
                found += find_images(path, recursive=True) if is_folder else [path]
                folders += [path] if is_folder else []
        else:
            images, video = find_inputs(given)
            found = [video] if video else images
        for path in found:
            paths.setdefault(osp.abspath(path), path)
    if not paths:
        raise ImageError('no inputs: give images, folders, videos or image lists')
    for folder in dict.fromkeys(folders):
        report_unsupported_files(folder)
    frames = {path: count_frames(path) for path in paths.values() if path.lower().endswith(VIDEO_SUFFIXES)}
    for path, number in frames.items():
        if not number:
            raise ImageError(
                f'{path} ({osp.getsize(path)} bytes) has no frame that can be decoded: convert it to MP4 (H.264)'
            )
    return ImageList(list(paths.values()), frames, folders)


def report_unsupported_files(folder: str) -> None:
    """Warn about images and videos in a folder that are not predicted because of their suffix."""
    others = list_images(folder, (*OTHER_SUFFIXES, *VIDEO_SUFFIXES))
    if others:
        suffixes = ', '.join(sorted({osp.splitext(path)[1].lower() for path in others}))
        print_log(
            f'{len(others)} files below {folder} end in {suffixes} ({others[0]}) and are not predicted: convert the '
            'images, give videos by name',
            logger='current',
            level=logging.WARNING,
        )


def _listed(path: str) -> List[str]:
    """Return the paths listed in a file; missing images are skipped when they are read."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f'cannot read {path} as an image list ({error}): expected UTF-8 with one path per line'
        ) from error
    found = [osp.join(osp.dirname(path), line) for line in lines if line and not line.startswith('#')]
    if not found:
        raise ImageError(f'{path} lists no images: expected one path per line, relative to the folder of the list')
    missing = next((name for name in found if name.lower().endswith(VIDEO_SUFFIXES) and not osp.isfile(name)), None)
    if missing:
        raise ImageError(f'{path} lists {missing}, which does not exist: correct or remove this line')
    return found


def count_frames(path: str) -> int:
    """Count the frames of a video that can be decoded, and report if many are missing; its header may be wrong."""
    import cv2

    video = open_video(path)
    number = 0
    expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    while video.grab():
        number += 1
    video.release()
    if number:
        report_lost_frames(path, number, expected)
    return number
