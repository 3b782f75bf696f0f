"""An unpickler that runs no code from the files it reads.

A pickle is a program: it names functions and has them called. This unpickler never imports what a file names. It
looks the name up in :data:`ALLOWED`, a table of this module's own functions that rebuild objects, and of plain data;
any other name is an error. Only these functions are called, and no object gets attributes from the file.
"""

import math
import pickle
import re
import reprlib
import struct
import sys
from collections import OrderedDict
from typing import IO, Any, Callable, ClassVar, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError

#: Byte order of this machine, as :mod:`struct` and NumPy write it.
NATIVE = '<' if sys.byteorder == 'little' else '>'
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
#: Limits of what a file contains, where an object that occurs several times counts each time: a few bytes can describe
#: values without end, on which hashing, comparing and converting to text take for ever.
MAX_VALUES = 10**7
MAX_LEVELS = 100
#: Containers that can be keys of dicts.
HASHABLE = (tuple, frozenset)
#: Names in pickles of quantized tensors and layers of torch.ao, its older versions, torchao and bitsandbytes.
QUANTIZED = re.compile(
    r'torch\._utils\._rebuild_qtensor|torch\.Q(U?Int8|Int32|UInt\dx\d)Storage|torch\.(nn|ao)\..*quant|torchao\.|bitsandbytes\.'
)


class Opaque:
    """Placeholder for an object whose content is not needed: training arguments, log buffers, paths."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f'<{self.name}, not read>'


class Rebuild:
    """A wrapper that marks a function that a file may call. It is not callable itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class StorageType(Opaque):
    """A torch storage class with its ``dtype``; ``None`` for raw bytes."""

    def __init__(self, name: str, dtype: Optional[torch.dtype]) -> None:
        super().__init__(name)
        self.dtype = dtype


def shortened(value: Any) -> str:
    """Return the beginning of a value's text, without forming the complete text."""
    return f'{reprlib.repr(value):.80}'


def strided(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Build a tensor over a 1-D storage, checking its bounds."""
    if not isinstance(storage, Tensor):
        raise ValueError(f'a tensor without a storage: {shortened(storage)}')
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)):
        found = f'size {shortened(size)}, stride {shortened(stride)}, offset {shortened(offset)}'
        raise ValueError(f'impossible tensor: {found}')
    if math.prod(size) == 0:
        return storage.new_empty(size)
    last = offset + sum((size[i] - 1) * stride[i] for i in range(len(size)))
    # The second condition: with a stride of 0, a few stored values could be repeated to fill any memory.
    if last >= storage.numel() or math.prod(size) > storage.numel():
        raise ValueError(f'a tensor of size {shortened(size)} over {storage.numel()} stored values')
    return storage.as_strided(size, stride, offset)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return strided(storage, offset, size, stride)


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
    return strided(storage.view(dtype), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
    # torch pickles tensors with Python attributes in this way. The function is one of the safe replacements.
    return _call(rebuild, args)


class UnsupportedValues(ValueError):
    """Data that an intact file contains, but that are not read."""


def _numpy_dtype(code: Any, *_: Any) -> 'np.dtype[Any]':
    if not isinstance(code, str) or not (_NUMERIC.fullmatch(code) or re.fullmatch(r'[US]\d+', code)):
        raise UnsupportedValues(f'NumPy values of type {shortened(code)}')
    return np.dtype(code)


def _numpy_array(*_: Any) -> np.ndarray:
    return np.empty(0, np.uint8)  # filled by the state that follows


def _set_array(array: np.ndarray, state: Any) -> None:
    """Call ``array.__setstate__`` after checks that NumPy omits: types, and as many bytes as the shape needs."""
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, (bytes, bytearray)):
        raise ValueError('a NumPy array of something other than numbers')
    if any(not isinstance(n, int) or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f'a NumPy array of shape {shortened(shape)} and type {dtype} with {len(data)} bytes')
    checked: Any = (1, tuple(shape), dtype, bool(fortran), bytes(data))
    array.__setstate__(checked)


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any = 'C') -> np.ndarray:
    array = _numpy_array()
    _set_array(array, (1, shape, dtype, order == 'F', data))
    return array


def _numpy_scalar(dtype: Any, data: Any = b'') -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(data) != dtype.itemsize:
        raise ValueError(f'a NumPy scalar of type {shortened(dtype)} with {len(data)} bytes')
    return np.frombuffer(data, dtype)[0]


def _encode(text: Any, encoding: Any = 'utf-8') -> bytes:
    if encoding not in ('latin1', 'latin-1', 'utf-8', 'utf8', 'ascii'):
        raise ValueError(f'text encoding {shortened(encoding)}')
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
        # HistoryBuffer pickles its statistics as getattr(HistoryBuffer, 'mean'), OneCycleLR its curve in the same way;
        # nothing is looked up here.
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
        ('mmengine.optim.scheduler.param_scheduler', 'OneCycleParamScheduler'),
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
        raise ValueError(f'a call of {shortened(function)}, which is not a function')
    if not isinstance(args, (tuple, list)):
        raise ValueError(f'a call with {type(args).__name__} for arguments')
    return function.function(*args)


def _complete_line(file: IO[bytes]) -> bytes:
    line = file.readline()
    if not line.endswith(b'\n'):  # half a name in a truncated file must not be reported as a rejected name
        raise EOFError('it is truncated in the middle of a name')
    return line


class RestrictedUnpickler(pickle._Unpickler):
    """The standard library's unpickler with every opcode that imports, calls or sets attributes replaced.

    This is the version in Python, whose opcodes can be replaced; it is fast enough for the few thousand opcodes of a
    checkpoint.

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
        self._keys: Dict[int, Tuple[int, int, Any]] = {}

    def load(self) -> Any:
        content = super().load()
        self._measure(content, (dict, list, set, frozenset, tuple), {})
        return content

    def _measure(
        self, node: Any, kinds: Any, known: Dict[int, Tuple[int, int, Any]], level: int = 0
    ) -> Tuple[int, int]:
        """Return the number of values in a tree, and of its levels.

        Args:
            node: The tree.
            kinds (type | tuple): Types of its branches; objects of other types count as one value.
            known (dict): Results by ``id``, with the objects, whose ids are thereby not used again; updated.
            level (int): Levels above.

        Raises:
            CheckpointError: There are more than :data:`MAX_VALUES` or :data:`MAX_LEVELS`, or an object contains itself.
        """
        if not isinstance(node, kinds):
            return 1, 0
        if id(node) not in known:
            values, levels = 1, 0
            if level <= MAX_LEVELS:
                for each in node.values() if isinstance(node, dict) else node:
                    found = self._measure(each, kinds, known, level + 1)
                    values, levels = values + found[0], max(levels, found[1])
            if values > MAX_VALUES or max(levels, level) >= MAX_LEVELS:
                raise CheckpointError(
                    f'{self.path} contains more than {MAX_VALUES} values or {MAX_LEVELS} levels of dicts and lists, or '
                    'an object that contains itself: rejected, no checkpoint needs that. Save only the weights: '
                    "torch.save({'state_dict': model.state_dict()}, PATH)"
                )
            known[id(node)] = values, levels + 1, node
        return known[id(node)][:2]

    def find_class(self, module: str, name: str) -> Any:
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        module = re.sub(r'^numpy\._core\b', 'numpy.core', module)
        if (module, name) not in ALLOWED and QUANTIZED.match(f'{module}.{name}'):
            raise CheckpointError(
                f'{self.path} contains quantized weights ({module}.{name}), expected those of a network in float: give '
                'the checkpoint that was quantized; tools/export.py --int8 writes an 8-bit file from it'
            )
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
            raise ValueError(f'an unknown reference {shortened(saved)}')
        kind, key, _, numel, *view = saved[1:]
        if (
            not isinstance(kind, StorageType)
            or not isinstance(key, (str, int))
            or not isinstance(numel, int)
            or numel < 0
        ):
            raise ValueError(f'an unknown storage {shortened(saved)}')
        return self.storage(kind.dtype or torch.uint8, str(key), numel, view[0] if view else None)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)
        self._measure(self.stack[-1], HASHABLE, self._keys)

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
            if state[1] not in ('|', '=', NATIVE) or any(part is not None for part in state[2:5]):
                raise UnsupportedValues(f'NumPy values with the properties {shortened(state)}')
        elif not isinstance(target, (dict, Opaque, Tensor)):
            raise ValueError(f'attributes for a {type(target).__name__}')
        # Attributes of the rest (a state dict's `_metadata`, what an argparse.Namespace holds) are skipped.

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        # The original allocates the announced size before it checks that the file has as many bytes.
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


def _measured(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Measure a tuple or frozenset when it is built: as a key of a dict it is hashed and compared."""

    def load_key(self: Any) -> None:
        load(self)
        self._measure(self.stack[-1], HASHABLE, self._keys)

    return load_key


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
    RestrictedUnpickler.dispatch[_code[0]] = _measured(RestrictedUnpickler.dispatch[_code[0]])
