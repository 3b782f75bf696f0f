"""Caches of values computed from weights, such as packed weights; a changed weight is noticed."""

from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch.nn as nn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..ops.tracing import hides_attributes
from .modified import has_global_hooks, is_unmodified

_version_of = attrgetter('_version')
#: Attributes of a module with its hooks.
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


class CachedWeight:
    """A tensor computed lazily from a weight and recomputed when the weight changes.

    Changes are detected by PyTorch's version counter: in-place changes and ``load_state_dict``, but not writes through
    ``.data``. The tensor is not part of a ``state_dict`` and is neither copied nor pickled with its layer.
    """

    _made: Optional[Tuple[Any, Tensor, Any]] = None

    def get(self, weight: Tensor, make: Callable[[Tensor], Tensor], *conditions: Any) -> Tensor:
        """Return ``make(weight)``, cached while neither the weight nor the conditions change."""
        if type(weight) not in (Tensor, nn.Parameter):  # a subclass, such as fake tensors, may have no memory
            return make(weight)
        key = (_state_of(weight), weight.shape, *conditions)
        kept = self._made  # key and tensor in one read, because other threads may replace them
        if kept is not None and kept[0] == key:
            return kept[1]
        made = make(weight)
        if type(made) is Tensor:  # not a tensor of a mode (FakeTensorMode), which is invalid after the mode ends
            # The storage is kept, because the memory of a freed one may become that of other values.
            self._made = key, made, weight.untyped_storage()
        return made

    def __getstate__(self) -> Dict[str, Any]:
        return {}


def _state_of(value: Tensor) -> Any:
    """Return a key that changes with the values of a tensor."""
    return value.data_ptr(), None if value.is_inference() else value._version


class _ModuleState:
    """State that the forward pass of a module depends on, including that of all modules in it.

    It is compared at each call. Most of that time is spent reading objects from memory, so it keeps few objects and
    compares them by Python's functions in C.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.modules())
        self.hooks = RemovableHandle.next_id
        self.attributes = [vars(each) for each in self.modules]
        self.sizes = list(map(len, self.attributes))
        # The hooks' dictionaries are compared, too, because they can be replaced without registering a hook.
        self.readers = [itemgetter('training', *_HOOKS, *_settings_of(each)) for each in self.modules]
        self.values = self.read_attributes()
        self.children = [each._modules for each in self.modules]
        self.children_then = [dict(each) for each in self.children]
        self.holders = [each._parameters for each in self.modules if each._parameters]
        self.parameters = self.read_parameters()
        self.tensors = [each for each in self.parameters if each is not None]
        self.storages = [each.untyped_storage() for each in self.tensors]  # kept, see CachedWeight.get
        self.counted = [each for each in self.tensors if not each.is_inference()]  # the others have no version
        self.states = self.read_states()

    def read_attributes(self) -> List[Any]:
        return [read(attributes) for read, attributes in zip(self.readers, self.attributes)]

    def read_parameters(self) -> List[Optional[nn.Parameter]]:
        return list(chain.from_iterable(map(dict.values, self.holders)))

    def read_states(self) -> List[int]:
        return [*map(Tensor.data_ptr, self.tensors), *map(_version_of, self.counted)]

    def has_hooks(self) -> bool:
        """Return whether a module has hooks; checked again only after a hook was registered on any module."""
        count = RemovableHandle.next_id
        if count != self.hooks:
            if not all(map(is_unmodified, self.modules)):
                return True
            self.hooks = count
        return False

    def is_current(self) -> bool:
        """Return whether the modules still have this state, and no hooks."""
        if hides_attributes() or has_global_hooks() or self.has_hooks():
            return False
        try:
            same = (
                list(map(len, self.attributes)) == self.sizes  # a `forward` set on the instance is one more attribute
                and self.read_attributes() == self.values
                and self.children == self.children_then
            )
        except KeyError:  # an attribute was deleted
            return False
        parameters = self.read_parameters()
        return (
            same
            and len(parameters) == len(self.parameters)
            and all(map(is_, parameters, self.parameters))
            and self.read_states() == self.states
        )


def _settings_of(module: nn.Module) -> List[str]:
    """Return the names of public attributes with plain values, such as ``eps``."""
    return [
        name
        for name, value in vars(module).items()
        if name[0] != '_' and name != 'training' and isinstance(value, (int, float, str, tuple))
    ]


class ModuleCache:
    """A value computed from a module's parameters, recomputed when a parameter, child, hook or setting changes.

    Parameter changes are detected as in :class:`CachedWeight`; so are replaced child modules, hooks, parametrizations,
    the training mode and settings such as ``eps``. It is neither copied nor pickled with the module.
    """

    _made: Optional[Tuple[Any, _ModuleState, Any]] = None

    def get(self, module: nn.Module, make: Callable[..., Any], *options: Any) -> Any:
        """Return ``make(*options)``, cached while nothing changes.

        Args:
            module (nn.Module): The module whose parameters, including those of its children, the value depends on.
            make (Callable): Returns the value, or ``None`` if the modules do not permit it.
            *options (Any): What else the value depends on. Only the last value is kept.
        """
        kept = self._made  # options, state and value in one read, because other threads may replace them
        if kept is not None and kept[0] == options and kept[1].is_current():
            return kept[2]
        self._made = None
        made = make(*options)
        if made is not None:
            self._made = options, _ModuleState(module), made
        return made

    def __getstate__(self) -> Dict[str, Any]:
        return {}
