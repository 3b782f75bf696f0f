"""Random files are converted correctly or refused with a message.

``FUZZ_CASES=2500 python -m pytest tests/checkpoints/test_fuzz.py`` runs the long version: that many cases of each test.
"""

import functools
import os
from collections import OrderedDict

import pytest
import torch
from networks import NETWORKS as FAMILY
from networks import build as build_row

hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fcvit_mm.checkpoints import (  # noqa: E402
    CheckpointError,
    convert_checkpoint,
    load_pretrained,
    read_checkpoint,
    recognize,
)
from fcvit_mm.models.published_names import PublishedNames  # noqa: E402

CASES = int(os.environ.get('FUZZ_CASES', 24))
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize='FUZZ_CASES' not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: Networks that have published names.
NETWORKS = {name: row for name, row in FAMILY.items() if row.type.published_names}
NUM_CLASSES = 5


@functools.lru_cache(maxsize=None)
def build(network, dense=False):
    row = NETWORKS[network]
    return build_row(row, **({} if dense else row.classifier)).eval()


def names_of(network) -> PublishedNames:
    return NETWORKS[network].type.published_names


def weights(network, dense, published):
    """A state dict: of a backbone, or of a classifier with its head."""
    state = OrderedDict((key, value.clone()) for key, value in build(network, dense).state_dict().items())
    channels = build(network).out_channels[-1]
    head = {'weight': torch.rand(NUM_CLASSES, channels), 'bias': torch.rand(NUM_CLASSES)}
    if published:
        state = OrderedDict(names_of(network).to_published(state))
        return state if dense else OrderedDict(state, **{f'head.{key}': value for key, value in head.items()})
    if dense:
        return state
    return OrderedDict(
        [
            *((f'backbone.{key}', value) for key, value in state.items()),
            *((f'head.fc.{key}', value) for key, value in head.items()),
        ]
    )


WRAP = {
    'bare': lambda state: state,
    'state_dict': lambda state: {'state_dict': state},
    'model': lambda state: {'model': state},
    'averaged': lambda state: {'state_dict_ema': state, 'epoch': 3},
    'deep': lambda state: {'state_dict': {'model': state}},
    'with more': lambda state: {'state_dict': state, 'optimizer': {'state': {0: torch.ones(2)}}, 'meta': {'epoch': 7}},
    'list': lambda state: [state],
    'tensor': lambda state: next(iter(state.values()), torch.ones(1)),
}
PREFIXES = ('', 'module.', '_orig_mod.', 'module._orig_mod.', 'backbone.', 'encoder.', 'module.backbone.', '.', 'head.')
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
SHAPES = {
    'transposed': lambda value: value.transpose(0, -1) if value.ndim else value,
    'flat': lambda value: value.flatten(),
    'scalar': lambda value: value.sum(),
    'empty': lambda value: value[:0],
    'one more': lambda value: value[None],
    'cut': lambda value: value[: max(len(value) // 2, 1)],
    'view': lambda value: value.expand(2, *value.shape)[1],
}
CHANGES = ('drop', 'keep few', 'rename', 'dtype', 'shape', 'add', 'object', 'nan')


def at_least_1d(value):
    return value if value.ndim else value[None]


@st.composite
def files(draw):
    """The content of a file: a genuine state dict with some changes, under some prefix, in some container."""
    network = draw(st.sampled_from(list(NETWORKS)))
    state = weights(network, draw(st.booleans()), draw(st.booleans()))
    changes = draw(st.lists(st.sampled_from(CHANGES), max_size=3))
    for change in changes:
        keys = list(state)
        if not keys:
            break
        some = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=4, unique=True))
        if change == 'keep few':
            state = OrderedDict((key, state[key]) for key in some)
            continue
        for key in some:
            value = state[key]
            if change == 'drop':
                del state[key]
            elif change == 'rename':
                state[draw(st.one_of(st.text(max_size=30), st.just(key + '.0'), st.integers()))] = state.pop(key)
            elif change == 'add':
                state[f'{key}{draw(st.sampled_from(["_", ".weight", "1"]))}'] = value
            elif change == 'object':
                state[key] = draw(st.sampled_from([None, 1.5, 'text', [1], (1, 2), {}]))
            elif isinstance(value, torch.Tensor):
                if change == 'dtype':
                    state[key] = value.to(draw(st.sampled_from(DTYPES)))
                elif change == 'shape':
                    state[key] = SHAPES[draw(st.sampled_from(list(SHAPES)))](at_least_1d(value))
                else:
                    state[key] = torch.full_like(value, float('nan')) if value.is_floating_point() else value
    prefix = draw(st.sampled_from(PREFIXES))
    if prefix:
        state = OrderedDict((f'{prefix}{key}', value) for key, value in state.items())
    return network, bool(changes), WRAP[draw(st.sampled_from(list(WRAP)))](state)


@fuzz
@given(file=files(), ema=st.booleans())
def test_converted_or_refused(tmp_path, file, ema):
    network, _, content = file
    source, target = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(content, source)
    target.unlink(missing_ok=True)
    try:
        convert_checkpoint(str(source), str(target), ema=ema)
    except CheckpointError as error:
        assert 'a.pth' in str(error) and not target.exists()
        return
    # What was written is plain data, belongs to the network, and is final: converting it again changes nothing.
    written = torch.load(target, weights_only=True)['state_dict']
    assert all(torch.isfinite(value).all() for value in written.values() if value.is_floating_point())
    assert all(isinstance(key, str) for key in written)
    again = tmp_path / 'c.pth'
    convert_checkpoint(str(target), str(again), force=True)
    second = torch.load(again, weights_only=True)['state_dict']
    assert second.keys() == written.keys() and all(torch.equal(second[key], written[key]) for key in written)


@fuzz
@given(file=files(), dense=st.booleans(), prefix=st.sampled_from([None, 'backbone', 'encoder.', 'nowhere']))
def test_loaded_or_refused_without_changes(tmp_path, file, dense, prefix):
    network, _, content = file
    backbone = build(network, dense)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.save(content, tmp_path / 'a.pth')
    try:
        load_pretrained(backbone, str(tmp_path / 'a.pth'), prefix=prefix)
    except CheckpointError:
        assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    else:
        assert all(torch.isfinite(value).all() for value in backbone.state_dict().values())
    finally:
        backbone.load_state_dict(before)


@fuzz
@given(data=st.data(), network=st.sampled_from(list(NETWORKS)), dense=st.booleans())
def test_published_names_round_trip(data, network, dense):
    """Any part of a state dict is converted to unique published names, and back."""
    names = names_of(network)
    state = build(network, dense).state_dict()
    # What decides the rows' conditions must be there, as in any file.
    conditions = names.conditions(state)
    keys = data.draw(st.sets(st.sampled_from(sorted(state))))
    published = names._replace(conditions=lambda _: conditions).to_published({key: state[key] for key in keys})
    assert len(published) == len(keys)
    chosen = tuple(row for row in names.rows if not row.when or row.when in conditions)
    assert {PublishedNames(chosen).to_ours(name) for name in published} == keys


@fuzz
@given(data=st.data(), network=st.sampled_from(list(NETWORKS)))
def test_corrupt_bytes_raise_no_other_exception(tmp_path, data, network):
    path = tmp_path / 'a.pth'
    torch.save(weights(network, True, True), path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())

    def position():
        """Draw a position or the end, independently of the file's size, which varies by a few bytes."""
        return data.draw(st.integers(0, 2**20)) * len(content) >> 20

    for _ in range(data.draw(st.integers(1, 4))):
        where = position()
        content[where : where + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=8))
    path.write_bytes(content[: position()])
    try:
        recognize(read_checkpoint(path), str(path))
    except CheckpointError as error:
        assert 'a.pth' in str(error)
