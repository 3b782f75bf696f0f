"""The results folder of a run: its settings, and the records of predicted images in shards."""

import hashlib
import io
import json
import os
import os.path as osp
import re
from contextlib import ExitStack, contextmanager
from typing import Any, Collection, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from ...files import atomic_path, file_lock, remove_temporaries, write_atomic
from .inputs import ImageList
from .options import Options
from .predictor import BatchPredictor
from .results import Coco, PredictionError, Record, write_table

#: File with the settings of a run, so that it is not continued with other settings.
RUN = 'run.json'
SHARDS = 'parts'
#: The other files and folders that runs write.
RESULTS = (
    *('annotations.json', 'classes.csv', 'drawn', 'features.csv', 'features.npy', 'labels', 'labels.csv'),
    *('predictions.csv', 'predictions.parquet', 'results.json', 'skipped.csv'),
)
#: Approximate number of images per shard; an incomplete shard is predicted again after a kill.
SHARD = 64
#: Name of a shard's file, as :meth:`Shards.path` builds it.
SHARD_FILE = re.compile(r'\d{8,}\.[0-9a-f]{16}\.(json|npy)')
#: Seconds to wait for another run: the processes that read images end 5 s after a killed run.
WAIT = 10.0
#: Options that do not affect the results, and may differ when a run is continued.
HOW_TO_RUN = ('batch_size', 'workers', 'device', 'launcher')


def check_folder(searched: Sequence[str], out: str) -> None:
    """Reject a folder for results that is a file, or inside a folder searched for images."""
    if osp.exists(out) and not osp.isdir(out):
        raise PredictionError(f'--out {out} is a file: give a folder')
    folder = osp.realpath(out)
    for given in searched:
        if (folder + os.sep).startswith(osp.realpath(given) + os.sep):
            raise PredictionError(
                f'--out {out} is inside {given}, whose images are predicted, so the results would be read as input '
                'images: give another folder'
            )


def settings_of(predictor: BatchPredictor, listed: ImageList, coco: Coco, options: Options) -> Dict[str, Any]:
    """Return the settings that results depend on; not the batch size."""
    images = hashlib.sha256()
    for path in listed.paths:
        images.update(f'{osp.abspath(path)}\n{listed.frames.get(path, 1)}\n'.encode(errors='surrogateescape'))
    kept = {key: value for key, value in options._asdict().items() if key not in HOW_TO_RUN}
    kept['coco'] = coco.fingerprint()  # the file may have changed
    return dict(kept, **predictor.fingerprint(), images=f'{len(listed)} ({images.hexdigest()})')


def read_run(path: str) -> Dict[str, Any]:
    """Read the settings of a run; empty without a file.

    Raises:
        PredictionError: The file was not written by this command.
    """
    if not osp.exists(path):
        return {}
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError('no settings')
        return content
    except ValueError as error:
        raise PredictionError(f'{path} was not written by this command ({error}): give another folder') from error


def stamps_of(listed: ImageList, size: int) -> List[str]:
    """Return a hash of the sizes and times of modification of each shard's images, to notice replaced images.

    Args:
        listed (ImageList): The images.
        size (int): Number of images per shard.
    """
    stamps: List[str] = []
    last, stamp = '', b''
    hashed = hashlib.sha256()
    for number in range(len(listed)):
        path = listed[number][0]
        if path != last:  # the frames of a video follow each other
            last, stamp = path, _stamp(path)
        hashed.update(stamp)
        if (number + 1) % size == 0 or number + 1 == len(listed):
            stamps.append(hashed.hexdigest()[:16])
            hashed = hashlib.sha256()
    return stamps


def _stamp(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError:  # missing images are skipped
        return b'missing\n'
    return f'{found.st_size} {found.st_mtime_ns}\n'.encode()


@contextmanager
def lock_results(out: str) -> Iterator[None]:
    """Admit one run at a time to a results folder.

    Raises:
        PredictionError: Another run is writing to it.
    """
    running = f'another run is writing to --out {out}'
    lock = file_lock(osp.join(out, RUN), f'{running}: waiting up to {WAIT:.0f} s for its end.', WAIT)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except TimeoutError as error:
            raise PredictionError(
                f'{running}: wait until it has ended, or give another folder. Several processes of one run need '
                'tools/dist_predict.sh or tools/slurm_predict.sh'
            ) from error
        yield


def compare_settings(out: str, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Return the settings of an earlier run in a results folder, which may be continued; empty if there is none.

    Raises:
        PredictionError: The folder contains the results of another run, or files of the same names, such as the
            annotations of a data set.
    """
    settings = json.loads(json.dumps(settings))
    found = read_run(osp.join(out, RUN))
    if not found:
        others = [name for name in (SHARDS, *RESULTS) if osp.lexists(osp.join(out, name))]
        if others:
            raise PredictionError(
                f'--out {out} contains {", ".join(others)}, but no {RUN}, so this command did not write it, and would '
                'overwrite it: give another folder'
            )
        return {}
    needed = [*settings, 'shard_size', *(['images_state'] if found.get('complete') else [])]
    lacking = [key for key in needed if key not in found]
    if lacking:
        raise PredictionError(
            f'--out {out} contains results of another version of this package, whose {RUN} lacks '
            f'{", ".join(lacking)}: give another folder, or delete this one, to predict again'
        )
    differ = [key for key in settings if found[key] != settings[key]]
    if not isinstance(found['shard_size'], int):
        differ.append('shard_size')
    if differ:
        updated = ' (an update of the packages may change the config, too)' if 'config' in differ else ''
        raise PredictionError(
            f'--out {out} contains results of another run, with different {", ".join(differ)}{updated}: give another '
            'folder, or delete this one'
        )
    return found


def store_or_compare_settings(out: str, settings: Dict[str, Any], shard_size: int) -> int:
    """Write the settings of a run to its results folder, unless an earlier run did.

    Temporary files of an earlier run that was killed are removed.

    Args:
        out (str): Folder of the results.
        settings (dict): Result of :func:`settings_of`.
        shard_size (int): Number of images per shard, for a new run.

    Returns:
        int: Number of images per shard; an earlier run that is continued keeps its own.

    Raises:
        PredictionError: See :func:`compare_settings`.
    """
    found = compare_settings(out, settings)
    if not found:
        write_run(out, dict(settings, shard_size=shard_size, complete=False))
        return shard_size
    remove_temporaries(out)
    for name in (SHARDS, 'drawn', 'labels'):  # other folders, such as that of the images, are not of this run
        remove_temporaries(osp.join(out, name), recursive=True)
    return found['shard_size']


def write_run(out: str, settings: Dict[str, Any]) -> None:
    write_atomic(osp.join(out, RUN), (json.dumps(settings, indent=1) + '\n').encode())


def shard_size(options: Options) -> int:
    """Return the number of images per shard; batches do not depend on the number of processes."""
    return options.batch_size * max(1, SHARD // options.batch_size) if options.tile is None else 1


class Shards:
    """The shards of a run, one file each.

    Args:
        folder (str): Folder of the results.
        size (int): Number of images per shard, except the last.
        images (int): Total number of images.
        stamps (Sequence[str]): Result of :func:`stamps_of`; parts of the names of the files, so that a shard with
            replaced images is predicted again.
    """

    def __init__(self, folder: str, size: int, images: int, stamps: Sequence[str]) -> None:
        self.folder, self.size, self.images = osp.join(folder, SHARDS), size, images
        self.out, self.stamps = folder, stamps

    def __len__(self) -> int:
        return -(-self.images // self.size)

    @property
    def state(self) -> str:
        """A hash of all stamps."""
        return hashlib.sha256(''.join(self.stamps).encode()).hexdigest()

    def numbers(self, shard: int) -> range:
        """Return the image numbers of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.images))

    def path(self, shard: int, suffix: str = '.json') -> str:
        return osp.join(self.folder, f'{shard:08d}.{self.stamps[shard]}{suffix}')

    def missing(self) -> List[int]:
        """Return the shards that are not yet complete."""
        return [shard for shard in range(len(self)) if not osp.exists(self.path(shard))]

    def write(self, shard: int, records: List[Record], features: List[np.ndarray]) -> None:
        """Write a shard; the features first, so that they exist if the records do."""
        if features:
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.stack(features))
            write_atomic(self.path(shard, '.npy'), stream.getvalue())
        write_atomic(self.path(shard), json.dumps(records).encode())

    def records(self) -> Iterator[Record]:
        """Read the records of all images, one shard at a time."""
        for shard in range(len(self)):
            with open(self.path(shard), encoding='utf-8') as file:
                yield from json.load(file)

    def finish_features(self) -> List[str]:
        """Write ``features.npy``, ``(images, channels)`` float32, and ``features.csv``, whose rows name the images."""
        names = [self.path(shard, '.npy') for shard in range(len(self))]
        names = [name for name in names if osp.exists(name)]  # shards with only skipped images have no features
        rows = sum('found' in record for record in self.records())
        channels = np.load(names[0]).shape[1] if names else 0
        path, table = (osp.join(self.out, name) for name in ('features.npy', 'features.csv'))
        with atomic_path(path) as temporary, open(temporary, 'ab') as file:
            # One shard at a time in memory. A memory map would end the process (SIGBUS) if the disk is full.
            layout = np.lib.format.dtype_to_descr(np.dtype(np.float32))
            np.lib.format.write_array_header_1_0(file, dict(descr=layout, fortran_order=False, shape=(rows, channels)))
            for name in names:
                file.write(np.load(name).tobytes())
        images = (record['name'] for record in self.records() if 'found' in record)
        write_table(table, ('row', 'image'), enumerate(images))
        return [path, table]

    def finish_skipped(self) -> Tuple[int, Optional[str]]:
        """Write ``skipped.csv`` if images were skipped; return how many, and its path."""
        number = sum('skipped' in record for record in self.records())
        path = osp.join(self.out, 'skipped.csv')
        if not number:
            if osp.exists(path):  # of an earlier run of which all images were skipped
                os.remove(path)
            return 0, None
        rows = ((record['name'], record['skipped']) for record in self.records() if 'skipped' in record)
        write_table(path, ('image', 'reason'), rows)
        return number, path

    def remove(self, keep: Collection[int] = ()) -> None:
        """Remove the files of shards except of those to ``keep``, also those of images that were replaced."""
        if not osp.isdir(self.folder):
            return
        kept = {self.path(shard, suffix) for shard in keep for suffix in ('.json', '.npy')}
        for name in os.listdir(self.folder):
            path = osp.join(self.folder, name)
            if path not in kept and SHARD_FILE.fullmatch(name):
                os.remove(path)
        if not os.listdir(self.folder):
            os.rmdir(self.folder)
