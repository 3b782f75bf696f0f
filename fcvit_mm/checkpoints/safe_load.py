"""Reading checkpoint files without running any code in them.

torch's containers are taken apart here (a zip archive of a pickle and raw storages, or several pickles followed by raw
storages), and pickles are read by :mod:`fcvit_mm.checkpoints.unpickler`: no reader that runs code sees a file.
"""

import io
import json
import os
import re
import struct
import sys
import zipfile
from typing import IO, Any, Callable, Dict, Union

import torch
from torch import Tensor

from .errors import CheckpointError, CheckpointNotFoundError
from .published import SCHEME, near_published
from .unpickler import NATIVE, RestrictedUnpickler, UnsupportedValues, strided

#: Readers of names that are not paths, by prefix; :mod:`fcvit_mm.checkpoints.published_files` registers one.
READERS: Dict[str, Callable[[str], Dict[str, Any]]] = {}
#: Key of the JSON text of ``meta`` in the header of a safetensors file, see :mod:`fcvit_mm.publishing.weights`.
META_KEY = 'fcvit_mm_meta'
#: Suffix of Hugging Face's index of a sharded checkpoint.
INDEX = '.index.json'
#: Suffixes of checkpoints.
ENDINGS = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors', '.pth.tar')
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before 1.6
_PROTOCOL = 1001


def read_checkpoint(path: Union[str, 'os.PathLike[str]']) -> Dict[str, Any]:
    """Read a checkpoint of torch (``.pth``, ``.pth.tar``, ``.pt``), Paddle (``.pdparams``) or safetensors.

    The format is determined by the content, not by the file name. Tensors come to the CPU and need no gradient; NumPy
    arrays stay NumPy arrays; objects that are neither weights nor plain data become
    :class:`~fcvit_mm.checkpoints.unpickler.Opaque`.

    Args:
        path (str | os.PathLike): The file, ``published:NAME``
            (:func:`~fcvit_mm.checkpoints.published_files.read_published`), or an ``http://`` or ``https://`` URL
            (:func:`~fcvit_mm.checkpoints.load.local_path`).

    Returns:
        dict: Saved object.

    Raises:
        CheckpointNotFoundError: There is no such file; a ``CheckpointError`` and a ``FileNotFoundError``.
        CheckpointError: It is not a checkpoint, is corrupt, or contains something that could run code.
    """
    path = os.path.expanduser(os.fspath(path))
    for beginning, read in READERS.items():
        if path.startswith(beginning):
            return read(path)
    if path.endswith(INDEX) and os.path.isfile(path):
        return _read_shards(path)
    head = _read_head(path)
    try:
        with open(path, 'rb') as file:
            if head.startswith(b'PK\x03\x04'):
                content = _read_torch_zip(file, path)
            elif _is_safetensors(head, path):
                content = _read_safetensors(path)
            else:
                content = _read_pickles(file, path)
    except CheckpointError:
        raise
    except UnsupportedValues as error:
        raise CheckpointError(
            f'{path} contains {error}, expected numbers of at most 8 bytes in the byte order of this machine: save '
            "only the weights, torch.save({'state_dict': model.state_dict()}, PATH)"
        ) from error
    except Exception as error:
        # Broad, because corrupt and malicious files cause any kind of error in readers.
        raise CheckpointError(
            f'{path} ({os.path.getsize(path)} bytes) is corrupt or truncated ({type(error).__name__}: {error}): '
            'download or copy it again'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} contains a {type(content).__name__}, expected a dict of tensors or a dict with a state_dict'
        )
    return content


def _read_head(path: str) -> bytes:
    """Return the first bytes of a file that may be a checkpoint.

    Raises:
        CheckpointError: It is not a checkpoint; names its actual type.
    """
    if '://' in path:
        raise CheckpointNotFoundError(
            f'checkpoint {path} is a URL, expected a path, http:// or https://: download the file and give its path'
        )
    if not os.path.exists(path):
        near = [] if os.path.dirname(path) else near_published(path)
        raise CheckpointNotFoundError(
            f'checkpoint {path} does not exist: '
            + (f'did you mean {" or ".join(SCHEME + name for name in near)}? Otherwise ' if near else '')
            + 'give the path of one, or published:NAME (python tools/download.py lists them)'
        )
    if os.path.isfile(os.path.join(path, '.metadata')):  # FSDP and others write one file per process
        raise CheckpointError(
            f"{path} is a checkpoint of PyTorch's distributed format: combine its files with "
            f'python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE, and give that file'
        )
    if os.path.isdir(path):
        inside = _checkpoint_in(path)
        raise CheckpointError(
            f'{path} is a directory: give the path of a checkpoint file in it'
            + (f', such as {inside}' if inside else '')
        )
    if not os.path.isfile(path):  # opening a pipe would wait for a writer
        raise CheckpointError(
            f'{path} is a device, pipe or socket, expected a regular file, which is read more than once: save the '
            'checkpoint as a file, and give its path'
        )
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read ({error.strerror}): check the permissions of the file and its folder'
        ) from error
    if not head:
        raise CheckpointError(f'{path} is empty (0 bytes): download or copy it again')
    if head.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`')
    if head.startswith(b'\x1f\x8b') or head[257:262] == b'ustar':
        raise CheckpointError(
            f'{path} is a compressed or tar archive (.pth.tar checkpoints are not archives): unpack it and give the '
            'checkpoint inside'
        )
    if head.startswith((b'PK\x03\x04', b'\x80')) or _is_safetensors(head, path):
        return head
    if re.match(rb'\s*<(!doctype|html|\?xml)', head, re.IGNORECASE):
        raise CheckpointError(
            f'{path} is a web page, not a checkpoint: download the file itself, not the page about it'
        )
    if not re.search(rb'[^\t\n\r\f -~\x80-\xff]', head):
        named = _named_in(path)
        if named:
            raise CheckpointError(f'{path} is not a checkpoint, but names one: give {named}')
        raise CheckpointError(
            f'{path} is text that begins with {head[:40]!r}, not a checkpoint: give the file with the weights'
        )
    raise CheckpointError(
        f'{path} begins with {head[:8]!r}, expected a torch, Paddle or safetensors checkpoint: give the file with the '
        'weights'
    )


def _named_in(path: str) -> str:
    """Return the file whose path a text file contains, as ``last_checkpoint`` does; empty if there is none."""
    with open(path, encoding='utf-8', errors='replace') as file:
        text = file.read(4096).strip()
    names = (
        text,
        os.path.join(os.path.dirname(path), text),
        os.path.join(os.path.dirname(path), os.path.basename(text)),
    )
    return next((name for name in names if text and os.path.isfile(name)), '')


def _checkpoint_in(folder: str) -> str:
    """Return the last checkpoint of a folder; empty if there is none."""
    last = os.path.join(folder, 'last_checkpoint')
    named = _named_in(last) if os.path.isfile(last) else ''
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith((INDEX, *ENDINGS))]
    whole = [path for path in paths if not is_shard(path)]
    return named or max(whole, key=os.path.getmtime, default='')


def is_shard(path: str) -> bool:
    """Check whether a file's name is that of one shard of a checkpoint: ``model-00001-of-00002.safetensors``."""
    return re.search(r'-\d{5}-of-\d{5}\.\w+$', path) is not None


def _read_shards(path: str) -> Dict[str, Any]:
    """Read the shards that Hugging Face's index of a sharded checkpoint names; they are in the folder of the index."""
    try:
        with open(path, encoding='utf-8') as file:
            names = sorted(set(json.load(file)['weight_map'].values()))
        shards = [os.path.join(os.path.dirname(path), os.path.basename(name)) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is not the index of a sharded checkpoint (weight_map is missing or wrong: {error}): give the file '
            'with the weights'
        ) from error
    weights: Dict[str, Any] = {}
    for shard in shards:
        if shard.endswith(INDEX):  # an index, perhaps this one
            raise CheckpointError(f'{path} names the index {shard}, expected files with weights: download it again')
        weights.update(read_checkpoint(shard))
    return weights


def _read_torch_zip(file: IO[bytes], path: str) -> Any:
    """Read torch's format since 1.6: a zip archive, uncompressed, of a pickle and of raw storages."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.count('/') == 1 and name.endswith('/data.pkl')]
        if any(name.endswith('/constants.pkl') or '/code/' in name for name in names):
            raise CheckpointError(
                f'{path} is a TorchScript archive, which contains code: rejected. Save only the weights: '
                'torch.save(module.state_dict(), PATH)'
            )
        if len(pickles) != 1:
            raise CheckpointError(
                f'{path} is a zip archive but not a torch checkpoint (it has {len(pickles)} '
                'data.pkl): unpack it if the checkpoint is inside'
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise CheckpointError(
                f'{path} is a compressed zip archive, which torch.save does not write: unpack it if '
                'the checkpoint is inside'
            )
        if sum(info.file_size for info in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError('its records are larger than the file')
        for info in archive.infolist():
            if info.CRC == 0:  # the file was written without checksums, see torch.serialization.set_crc32_options
                info.CRC = None  # type: ignore[assignment]
        root = pickles[0][: -len('data.pkl')]
        if f'{root}byteorder' in names and archive.read(f'{root}byteorder') != sys.byteorder.encode():
            raise CheckpointError(f'{path} was written on a machine with another byte order: save it again on this one')
        storages: Dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, numel: int, view: Any) -> Tensor:
            if key not in storages:
                data = bytearray(archive.read(f'{root}data/{key}'))
                storages[key] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            return storages[key].view(dtype)

        with archive.open(pickles[0]) as pickled:
            # Buffered, because each of the thousands of small reads from the archive is slow.
            return RestrictedUnpickler(io.BufferedReader(pickled), path, storage).load()  # type: ignore[type-var]


def _read_pickles(file: IO[bytes], path: str) -> Any:
    """Read a single pickle (Paddle), or torch's format before 1.6: pickles, then raw storages."""
    first = RestrictedUnpickler(file, path).load()
    if not isinstance(first, int) or first != _MAGIC:
        return first
    protocol, system = (RestrictedUnpickler(file, path).load() for _ in range(2))
    if protocol != _PROTOCOL or system.get('little_endian') is not (NATIVE == '<'):
        raise CheckpointError(
            f'{path} has an unknown torch format (protocol {protocol}, {system}): load it with the torch version that '
            'wrote it and save it again'
        )
    size = left = os.fstat(file.fileno()).st_size
    storages: Dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int, view: Any) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if left < 0:
                raise ValueError(f'its tensors are larger than the {size} bytes of the file')
            storages[key] = torch.empty(numel, dtype=dtype)
        values = storages[key]
        if view is None:
            return values
        _, offset, length = view
        return strided(values, offset, (length,), (1,))

    content = RestrictedUnpickler(file, path, storage).load()
    keys = [str(key) for key in RestrictedUnpickler(file, path).load()]
    if set(keys) != set(storages):
        raise ValueError(f'{len(keys)} storages listed, {len(storages)} used')
    for key in keys:
        (numel,) = struct.unpack('<q', file.read(8))
        target = storages[key]
        if numel != target.numel():
            raise ValueError(f'{numel} values stored, expected {target.numel()}')
        data = bytearray(file.read(target.numel() * target.element_size()))
        if len(data) != target.numel() * target.element_size():
            raise EOFError('it is truncated in the values of a tensor')
        if data:
            target.copy_(torch.frombuffer(data, dtype=target.dtype))
    return content


def _is_safetensors(head: bytes, path: str) -> bool:
    """Check whether a file begins with the length of a JSON header. The length may begin like a pickle, with 0x80."""
    return head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] + 8 <= os.path.getsize(path)


def _read_safetensors(path: str) -> Any:
    try:
        from safetensors import safe_open
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f'{path} is a safetensors file: install safetensors to read it (pip install safetensors)'
        ) from error
    with safe_open(path, 'pt') as file:
        meta = (file.metadata() or {}).get(META_KEY)
    return load_file(path) if meta is None else {'state_dict': load_file(path), 'meta': json.loads(meta)}
