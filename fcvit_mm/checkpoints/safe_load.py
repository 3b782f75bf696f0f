"""Reading checkpoint files without running any code in them.

A pickle is a program: it names functions and has them called. This unpickler never imports what a file names. It
looks the name up in :data:`ALLOWED`, a table of this module's own rebuilders and of plain data; any other name stops
the reading. Only those rebuilders are called, and nothing has its attributes set. torch's containers are taken apart
here as well (a zip archive of a pickle and raw storages, or several pickles followed by raw storages), so no second
reader can be exploited.
"""

import io
import json
import math
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from typing import IO, Any, Callable, ClassVar, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, CheckpointNotFoundError
from .published import SCHEME, near_published

#: Readers of names that are not paths, by prefix; :mod:`fcvit_mm.checkpoints.published_files` registers one.
READERS: Dict[str, Callable[[str], Dict[str, Any]]] = {}


class Opaque:
    """Placeholder for an object whose content is not needed: training arguments, log buffers, paths."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f'<{self.name}, not read>'


class Rebuild:
    """A callable that a file may call. Not itself callable, so that nothing else is mistaken for one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class StorageType(Opaque):
    """A torch storage class with its ``dtype``; ``None`` for raw bytes."""

    def __init__(self, name: str, dtype: Optional[torch.dtype]) -> None:
        super().__init__(name)
        self.dtype = dtype


#: Where a safetensors file's header has `meta` as JSON text, see fcvit_mm/publishing/weights.py.
META_KEY = 'fcvit_mm_meta'
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before 1.6
_PROTOCOL = 1001
_NATIVE = '<' if sys.byteorder == 'little' else '>'
_NUMERIC = re.compile(r'b1|\?|[iu][1248]|f[248]|c8|c16')
_STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64,
    'ComplexDoubleStorage': torch.complex128,
}


def _strided(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Build a tensor over a 1-D storage, checking its bounds."""
    if not isinstance(storage, Tensor):
        raise ValueError(f'a tensor without a storage: {storage!r}')
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f'impossible tensor: size {size}, stride {stride}, offset {offset}')
    if math.prod(size) == 0:
        return storage.new_empty(size)
    last = offset + sum((size[i] - 1) * stride[i] for i in range(len(size)))
    # The second half: a few stored values repeated by a stride of 0 could fill any memory.
    if last >= storage.numel() or math.prod(size) > storage.numel():
        raise ValueError(f'a tensor of size {size} over {storage.numel()} stored values')
    return storage.as_strided(size, stride, offset)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return _strided(storage, offset, size, stride)


def _tensor_v3(
    storage: Any,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: Any,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    return _strided(storage.view(dtype), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
    # torch wraps tensors with Python attributes so; the function is one of ours, like everywhere.
    return _call(rebuild, args)


def _numpy_dtype(code: Any, *_: Any) -> 'np.dtype[Any]':
    if not isinstance(code, str) or not (_NUMERIC.fullmatch(code) or re.fullmatch(r'[US]\d+', code)):
        raise ValueError(f'NumPy values of type {code!r}, expected numbers')
    return np.dtype(code)


def _numpy_array(*_: Any) -> np.ndarray:
    return np.empty(0, np.uint8)  # filled by the state that follows


def _set_array(array: np.ndarray, state: Any) -> None:
    """Call ``array.__setstate__`` after checks that NumPy omits: types, and as many bytes as the shape needs."""
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, (bytes, bytearray)):
        raise ValueError('a NumPy array of something other than numbers')
    if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f'a NumPy array of shape {shape} and type {dtype} with {len(data)} bytes')
    checked: Any = (1, tuple(shape), dtype, bool(fortran), bytes(data))
    array.__setstate__(checked)


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any = 'C') -> np.ndarray:
    array = _numpy_array()
    _set_array(array, (1, shape, dtype, order == 'F', data))
    return array


def _numpy_scalar(dtype: Any, data: Any = b'') -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(data) != dtype.itemsize:
        raise ValueError(f'a NumPy scalar of type {dtype} with {len(data)} bytes')
    return np.frombuffer(data, dtype)[0]


def _encode(text: Any, encoding: Any = 'utf-8') -> bytes:
    if encoding not in ('latin1', 'latin-1', 'utf-8', 'utf8', 'ascii'):
        raise ValueError(f'text encoding {encoding!r}')
    return text.encode(encoding)


def _opaque(name: str) -> Rebuild:
    return Rebuild(lambda *args: Opaque(name))


def _allowed() -> Dict[Tuple[str, str], Any]:
    """Return the safe replacement of each (module, name) in checkpoints of MMEngine and published ones."""
    table: Dict[Tuple[str, str], Any] = {
        ('collections', 'OrderedDict'): Rebuild(lambda items=(): OrderedDict(items)),
        ('collections', 'Counter'): Rebuild(lambda items=(): dict(items)),
        ('collections', 'defaultdict'): Rebuild(lambda factory=None, items=(): dict(items)),
        ('_codecs', 'encode'): Rebuild(_encode),
        ('builtins', 'bytes'): Rebuild(lambda: b''),
        ('copyreg', '_reconstructor'): Rebuild(lambda kind, base=None, state=None: _call(kind, ())),
        ('torch._utils', '_rebuild_tensor'): Rebuild(_tensor),
        ('torch._utils', '_rebuild_tensor_v2'): Rebuild(_tensor),
        ('torch._utils', '_rebuild_tensor_v3'): Rebuild(_tensor_v3),
        ('torch._utils', '_rebuild_parameter'): Rebuild(_parameter),
        ('torch._utils', '_rebuild_parameter_with_state'): Rebuild(_parameter),
        ('torch._tensor', '_rebuild_from_type_v2'): Rebuild(_from_type),
        ('torch', 'Size'): Rebuild(lambda size=(): tuple(size)),
        ('torch', 'device'): _opaque('torch.device'),
        ('torch', 'Tensor'): Opaque('torch.Tensor'),
        ('torch.nn.parameter', 'Parameter'): Opaque('torch.nn.Parameter'),
        ('torch.storage', 'UntypedStorage'): StorageType('UntypedStorage', None),
        ('torch', 'UntypedStorage'): StorageType('UntypedStorage', None),
        ('numpy', 'ndarray'): Opaque('numpy.ndarray'),
        ('numpy', 'dtype'): Rebuild(_numpy_dtype),
        ('numpy.core.multiarray', '_reconstruct'): Rebuild(_numpy_array),
        ('numpy.core.multiarray', 'scalar'): Rebuild(_numpy_scalar),
        ('numpy.core.numeric', '_frombuffer'): Rebuild(_numpy_frombuffer),
        # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'); nothing is looked up here.
        ('builtins', 'getattr'): _opaque('getattr'),
        ('builtins', 'object'): Opaque('object'),
    }
    for kind in (tuple, list, set, frozenset):
        table['builtins', kind.__name__] = Rebuild(kind)
    table['builtins', 'slice'] = _opaque('slice')
    table['builtins', 'dict'] = Rebuild(lambda items=(): dict(items))
    for module, name in (
        ('mmengine.config.config', 'ConfigDict'),
        ('mmcv.utils.config', 'ConfigDict'),
        ('addict.addict', 'Dict'),
    ):
        table[module, name] = Rebuild(lambda items=(): dict(items))
    for module, name in (
        ('argparse', 'Namespace'),
        ('mmengine.logging.history_buffer', 'HistoryBuffer'),
        ('pathlib', 'PosixPath'),
        ('pathlib', 'WindowsPath'),
        ('pathlib', 'PurePosixPath'),
        ('pathlib._local', 'PosixPath'),
        ('pathlib._local', 'WindowsPath'),
    ):
        table[module, name] = _opaque(f'{module}.{name}')
    for name, dtype in _STORAGES.items():
        table['torch', name] = StorageType(name, dtype)
    for name in dir(torch):
        if isinstance(getattr(torch, name), torch.dtype):
            table['torch', name] = getattr(torch, name)
    return table


ALLOWED = _allowed()


def _call(function: Any, args: Any) -> Any:
    if not isinstance(function, Rebuild):
        raise ValueError(f'a call of {function!r}, which is not a function')
    if not isinstance(args, (tuple, list)):
        raise ValueError(f'a call with {type(args).__name__} for arguments')
    return function.function(*args)


def _complete_line(file: IO[bytes]) -> bytes:
    line = file.readline()
    if not line.endswith(b'\n'):  # else half a name in a cut file would be reported as a name that is refused
        raise EOFError('it is truncated in the middle of a name')
    return line


class RestrictedUnpickler(pickle._Unpickler):
    """The standard library's unpickler with every opcode that imports, calls or sets attributes replaced.

    The one written in Python, because its opcodes can be replaced; checkpoints have few thousand of them.

    Args:
        file: Binary file, at the pickle's beginning.
        path (str): Path of the file, for errors.
        storage (callable): Storage type, key, number of values -> 1-D tensor.
    """

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)
    stack: List[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], List[Any]]

    def __init__(self, file: IO[bytes], path: str, storage: Optional[Callable[..., Tensor]] = None) -> None:
        super().__init__(file, encoding='latin1')
        self._file_readline = lambda: _complete_line(file)
        self.path = path
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        module = re.sub(r'^numpy\._core\b', 'numpy.core', module)
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f'{self.path} needs {module}.{name}, which is not plain data or tensors. Rejected, because loading it '
                'could run code. If you trust the author of the file, load it yourself and save only its weights: '
                "torch.save({'state_dict': model.state_dict()}, PATH)"
            )
        return ALLOWED[module, name]

    def get_extension(self, code: int) -> None:
        raise CheckpointError(f'{self.path} needs the pickle extension {code}: rejected, no checkpoint needs one')

    def persistent_load(self, saved: Any) -> Tensor:
        if self.storage is None or not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != 'storage':
            raise ValueError(f'an unknown reference {saved!r:.80}')
        kind, key, _, numel, *view = saved[1:]
        if not isinstance(kind, StorageType) or not isinstance(numel, int) or numel < 0:
            raise ValueError(f'an unknown storage {saved!r:.80}')
        return self.storage(kind.dtype or torch.uint8, str(key), numel, view[0] if view else None)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_newobj_ex(self) -> None:
        if self.stack.pop():
            raise ValueError('an object made with keyword arguments')
        self.load_reduce()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(_call(klass, args))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.ndarray):
            _set_array(target, state)
        elif isinstance(target, np.dtype):
            if state[1] not in ('|', '=', _NATIVE) or any(part is not None for part in state[2:5]):
                raise ValueError(f'NumPy values of type {state!r:.80}, expected numbers of this byte order')
        elif not isinstance(target, (dict, Opaque, Tensor)):
            raise ValueError(f'attributes for a {type(target).__name__}')
        # Attributes of the rest (a state dict's `_metadata`, what an argparse.Namespace holds) are skipped.

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        # The original sets aside what the file announces before it checks whether that much is there.
        self.append(bytearray(self.read(struct.unpack('<Q', self.read(8))[0])))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_append(self) -> None:
        self._grow([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        self._grow(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def _grow(self, items: List[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f'items for a {type(self.stack[-1]).__name__}')
        self.stack[-1].extend(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError(f'items for a {type(self.stack[-1]).__name__}')
        self.stack[-1].update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for i in range(0, len(items), 2):
            self._set(items[i], items[i + 1])

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _set(self, key: Any, value: Any) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError(f'keys for a {type(self.stack[-1]).__name__}')
        self.stack[-1][key] = value


def read_checkpoint(path: Union[str, 'os.PathLike[str]']) -> Dict[str, Any]:
    """Read a checkpoint of torch (``.pth``, ``.pth.tar``, ``.pt``), Paddle (``.pdparams``) or safetensors.

    The format is determined by the content, not by the file name. Tensors come to the CPU and need no gradient; NumPy
    arrays stay NumPy arrays; objects that are neither weights nor plain data become :class:`Opaque`.

    Args:
        path (str | os.PathLike): The file, or ``published:NAME``
            (:func:`~fcvit_mm.checkpoints.published_files.read_published`).

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
    head = _read_head(path)
    try:
        with open(path, 'rb') as file:
            if head.startswith(b'PK\x03\x04'):
                content = _read_torch_zip(file, path)
            elif head.startswith(b'\x80'):
                content = _read_pickles(file, path)
            else:
                content = _read_safetensors(path)
    except CheckpointError:
        raise
    except Exception as error:
        # Broad, because damaged and hostile bytes make readers fail in any way there is.
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
    if not os.path.exists(path):
        near = [] if os.path.dirname(path) else near_published(path)
        raise CheckpointNotFoundError(
            f'checkpoint {path} does not exist: '
            + (f'did you mean {" or ".join(SCHEME + name for name in near)}? Otherwise ' if near else '')
            + 'give the path of one, or published:NAME (python tools/download.py lists them), or train from scratch '
            'with pretrained=None (init_cfg=None in the backbone)'
        )
    if os.path.isdir(path):
        raise CheckpointError(f'{path} is a directory: give the path of a checkpoint file in it')
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    if not head:
        raise CheckpointError(f'{path} is empty (0 bytes): download or copy it again')
    if head.startswith(b'version https://git-lfs'):
        raise CheckpointError(f'{path} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`')
    if head.startswith(b'\x1f\x8b') or head[257:262] == b'ustar':
        raise CheckpointError(
            f'{path} is a compressed or tar archive (.pth.tar checkpoints are not archives): unpack it and give the '
            'checkpoint inside'
        )
    if head.startswith((b'PK\x03\x04', b'\x80')):
        return head
    if _safetensors_header_size(head) <= os.path.getsize(path) and head[8:9] == b'{':
        return head
    if re.match(rb'\s*<(!doctype|html|\?xml)', head, re.IGNORECASE):
        raise CheckpointError(
            f'{path} is a web page, not a checkpoint: download the file itself, not the page about it'
        )
    if not re.search(rb'[^\t\n\r\f -~\x80-\xff]', head):
        raise CheckpointError(f'{path} is text that begins with {head[:40]!r}, not a checkpoint')
    raise CheckpointError(f'{path} begins with {head[:8]!r}: neither a torch, a Paddle nor a safetensors checkpoint')


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
            # The archive's own file takes long for each of the thousands of small reads.
            return RestrictedUnpickler(io.BufferedReader(pickled), path, storage).load()  # type: ignore[type-var]


def _read_pickles(file: IO[bytes], path: str) -> Any:
    """Read a single pickle (Paddle), or torch's format before 1.6: pickles, then raw storages."""
    first = RestrictedUnpickler(file, path).load()
    if not isinstance(first, int) or first != _MAGIC:
        return first
    protocol, system = (RestrictedUnpickler(file, path).load() for _ in range(2))
    if protocol != _PROTOCOL or system.get('little_endian') is not (_NATIVE == '<'):
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
        return _strided(values, offset, (length,), (1,))

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
        if data:
            target.copy_(torch.frombuffer(data, dtype=target.dtype))
    return content


def _safetensors_header_size(head: bytes) -> int:
    return struct.unpack('<Q', head[:8])[0] + 8 if len(head) > 8 else sys.maxsize


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
