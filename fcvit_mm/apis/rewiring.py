"""Channels, levels and indices of necks and heads in a config: adapted to another backbone, and checked."""

from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from mmengine.config import ConfigDict

from ..engine.config import type_name, walk
from ..errors import UserError

#: Entries of a model that do not read the backbone's outputs.
NO_PARTS = ('type', 'backbone', 'data_preprocessor', 'init_cfg', 'train_cfg', 'test_cfg', 'pretrained')
INSTEAD = 'Take another config, or write the model by hand'


class StockConfigError(UserError):
    """The backbone of a config cannot be replaced; the message names the component."""


class ChannelMismatch(NamedTuple):
    """An argument of a component that does not match the outputs of the backbone.

    Attributes:
        part (str): Dotted name of the component.
        key (str): Name of the argument, such as ``'in_channels'``.
        value (Any): The argument.
        expected (Any): Correct value; ``None`` if it is not known.
    """

    part: str
    key: str
    value: Any
    expected: Any


def rewire(model: ConfigDict, old: Sequence[int], new: Sequence[Optional[int]]) -> None:
    """Adapt the neck, or the heads if there is no neck, to the outputs of another backbone.

    Args:
        model (ConfigDict): The config of a model; changed in place.
        old (Sequence[int]): Channels of the original outputs.
        new (Sequence[int | None]): Channels of the new outputs; ``None`` for a removed one.

    Raises:
        StockConfigError: A part whose channels are not those of ``old``, or that has no argument for them.
    """
    parts = list(readers(model))
    changed = [_rewire_part(name, node, old, new) for name, node in parts]
    if not any(changed):
        raise StockConfigError(
            f'{", ".join(f"model.{name} ({type_name(node)})" for name, node in parts) or "the model"} has no argument '
            f'in_channels, so it accepts no other backbone. {INSTEAD}'
        )


def readers(model: Mapping[str, Any]) -> Iterator[Tuple[str, ConfigDict]]:
    """Yield dotted name and config of each component that reads the backbone's outputs.

    These are the first neck or, without a neck, the heads, and nested heads that select outputs by ``in_index`` or read
    RoI features of one output.
    """
    neck = model.get('neck')
    if neck:
        name, node = ('neck.0', neck[0]) if isinstance(neck, (list, tuple)) else ('neck', neck)
        if isinstance(node, dict):
            yield name, node
        return
    for name, node in model.items():
        if name not in NO_PARTS:
            yield from _reading_heads(name, node, is_head=True)


def _reading_heads(name: str, node: Any, is_head: bool) -> Iterator[Tuple[str, ConfigDict]]:
    if isinstance(node, (list, tuple)):
        for number, child in enumerate(node):
            yield from _reading_heads(f'{name}.{number}', child, is_head)
    if not isinstance(node, dict):
        return
    if is_head or 'in_index' in node:
        yield name, node
    for key, child in node.items():
        # RoI features go through the shared head first, if there is one.
        endings = ('_extractor',) if node.get('shared_head') else ('_extractor', '_head')
        pooled = name == 'roi_head' and key.endswith(endings)
        yield from _reading_heads(f'{name}.{key}', child, pooled)


def _rewire_part(name: str, node: ConfigDict, old: Sequence[int], new: Sequence[Optional[int]]) -> bool:
    """Change channels and indices of a component; return whether it has any."""
    kept = [index for index, channels in enumerate(new) if channels is not None]
    old, new = _before_widening(node, old), _before_widening(node, new)
    index = node.get('in_index')
    keys = [key for key in node if key.endswith('in_channels')]
    if name.endswith('_extractor') and node.get('out_channels') in old:  # RoI features have the channels of their map
        keys.append('out_channels')
    for key in keys:
        value = node[key]
        if isinstance(value, (list, tuple)):
            outputs = _outputs_of(f'model.{name}.{key}', value, index, old)
            node[key] = [new[each] for each in outputs if each in kept]
        else:
            output = _output_of(f'model.{name}.{key}', value, index if key == 'in_channels' else None, old)
            if new[output] is not None:
                node[key] = new[output]
    if len(kept) < len(old):
        _renumber(node, kept, len(old))
    return bool(keys)


def _before_widening(node: ConfigDict, channels: Sequence[Any]) -> List[Any]:
    """Divide channels by the ``widen_factor`` of a component, which multiplies its channels by it, as in MMYOLO.

    The results are not rounded, because some components round the products up to a multiple of 8, others down to an
    integer.
    """
    factor = node.get('widen_factor', 1)
    exact = [None if each is None else each / factor for each in channels]
    return [each if each is None or each % 1 else int(each) for each in exact]


def follow_neck(model: ConfigDict, before: Optional[List[int]], after: Optional[List[int]]) -> None:
    """Adapt heads to a neck whose outputs have as many channels as its inputs, such as that of YOLOv5.

    Args:
        model (ConfigDict): The config of a model; changed in place.
        before, after (list[int], optional): Channels of the neck's outputs; ``None`` if unknown.
    """
    if before is None or after is None or before == after:
        return
    for name, part in model.items():
        for node in walk(part) if name not in (*NO_PARTS, 'neck') else ():
            if node.get('in_channels') == _before_widening(node, before):
                node['in_channels'] = _before_widening(node, after)


def _outputs_of(name: str, value: Sequence[int], index: Any, old: Sequence[int]) -> List[int]:
    """Return which outputs a list of channels belongs to: those of ``in_index``, all in order, or all in reverse."""
    count = len(old)
    ordered = [each % count for each in index] if isinstance(index, (list, tuple)) else list(range(count))
    for order in (ordered, ordered[::-1]):
        if [old[each] for each in order] == list(value):
            return order
    raise StockConfigError(
        f'{name}={list(value)}, but the backbone returns {list(old)} channels, so its outputs cannot be matched to '
        f'them. {INSTEAD}'
    )


def _output_of(name: str, value: Any, index: Any, old: Sequence[int]) -> int:
    """Return which output a number of channels belongs to: that of ``in_index``, else the deepest with this number."""
    if isinstance(index, int) and old[index] == value:
        return index % len(old)
    found = [each for each, channels in enumerate(old) if channels == value]
    if not found or isinstance(index, int):
        raise StockConfigError(
            f'{name}={value}, but the backbone returns {list(old)} channels, so its outputs cannot be matched to '
            f'them. {INSTEAD}'
        )
    return found[-1]


def _renumber(node: ConfigDict, kept: Sequence[int], count: int) -> None:
    """Change the indices by which a component selects outputs, because only the outputs ``kept`` remain."""
    place = {index: number for number, index in enumerate(kept)}
    index = node.get('in_index')
    if isinstance(index, int) and index % count in place:
        node['in_index'] = place[index % count]
    elif isinstance(index, (list, tuple)):
        node['in_index'] = [place[each % count] for each in index if each % count in place]
    if node.get('start_level'):
        node['start_level'] = sum(each < node['start_level'] for each in kept)
    end = node.get('end_level', -1)
    if isinstance(end, int) and end >= 0 and end in place:
        node['end_level'] = place[end]
    for key in ('strides', 'feature_strides'):
        if isinstance(node.get(key), (list, tuple)) and len(node[key]) == count:
            node[key] = [node[key][each] for each in kept]


def channel_mismatches(model: Mapping[str, Any], channels: Sequence[int]) -> Iterator[ChannelMismatch]:
    """Yield the numbers of channels in a model's config that differ from the outputs of its backbone.

    Args:
        model (dict): The config of a model.
        channels (Sequence[int]): Channels of the backbone's outputs.
    """
    parts = list(readers(model))
    has_channels = any(key.endswith('in_channels') for _, node in parts for key in node)
    if not has_channels:  # the neck only pools, so the heads get the backbone's channels
        parts = list(readers({**model, 'neck': None}))
    for name, node in parts:
        index = node.get('in_index')
        chosen = index if isinstance(index, (list, tuple)) else [index]
        if index is not None and not all(isinstance(each, int) for each in chosen):
            continue  # the runner reports it
        for key in [key for key in node if key.endswith('in_channels')]:
            value, full, own = node[key], f'model.{name}.{key}', key == 'in_channels'
            own_channels = _before_widening(node, channels)
            try:
                if isinstance(value, (list, tuple)):
                    order = _outputs_of(full, value, index, own_channels)
                    # A head may reverse the maps itself; with in_index in reverse this is not certain.
                    if own and index is not None and order != [each % len(own_channels) for each in chosen]:
                        yield ChannelMismatch(f'model.{name}', key, value, _expected(value, index, own_channels))
                else:
                    _output_of(full, value, index if own else None, own_channels)
            except (StockConfigError, IndexError):
                yield ChannelMismatch(
                    f'model.{name}', key, value, _expected(value, index, own_channels) if own else None
                )


def _expected(value: Any, index: Any, channels: Sequence[int]) -> Any:
    """Return the correct value of a head's ``in_channels``; ``None`` if its ``in_index`` names missing outputs."""
    count = len(channels)
    chosen = index if isinstance(index, (list, tuple)) else [-1 if index is None else index]
    if isinstance(value, (list, tuple)) and index is None:
        return list(channels)
    if not all(-count <= each < count for each in chosen):
        return None
    found = [channels[each] for each in chosen]
    return found if isinstance(index, (list, tuple)) else found[0]
