"""Choice by measurement, on a machine that the tables were not tuned on."""

import json
import os
import re
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fcvit_mm
from fcvit_mm.ops import __main__ as command
from fcvit_mm.ops import measured, use_ops
from fcvit_mm.ops.dispatch import Implementation, operation
from fcvit_mm.ops.measured import clear_choices, device_name, kind_of_call, path_of_choices, read_choices

X = torch.linspace(-1, 1, 96).view(1, 4, 6, 4)
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    """Treat this CPU as one that the tables were not tuned on, and store its choices in a temporary folder."""
    monkeypatch.setattr(measured, 'TUNED_CPUS', ())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    caches = (measured._is_tuned_cpu, measured._warn, measured._log_slower)
    for cache in caches:
        cache.cache_clear()
    clear_choices()
    yield
    clear_choices()
    for cache in caches:
        cache.cache_clear()


class Calls:
    """A function that counts its calls, takes its time and may be wrong."""

    def __init__(self, seconds=0.0, add=0.0, error=None, gradient=1.0):
        self.seconds, self.add, self.error, self.gradient, self.count = seconds, add, error, gradient, 0

    def __call__(self, x):
        self.count += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        y = 2 * x + self.add
        return y if self.gradient == 1 else y.detach() + self.gradient * (x - x.detach())


def twice(preferred, reference=None, when=lambda x: True):
    """An operation of a preferred implementation and the reference."""
    call = reference or Calls(seconds=0.01)
    op = operation()(lambda x: call(x))
    op.__name__ = 'twice'
    op.implementations = (Implementation('preferred', preferred, when, 'always', 'speed'),)
    return op


def test_runs_the_fastest_implementation(capsys):
    for preferred, reference, name in (
        (Calls(), Calls(seconds=0.01), 'preferred'),
        (Calls(seconds=0.01), Calls(), 'reference'),
    ):
        op = twice(preferred, reference)
        torch.testing.assert_close(op(X), 2 * X)
        assert op.choose(X).name == name
        clear_choices()
        os.remove(path_of_choices(device_name(CPU)))
    output = ''.join(capsys.readouterr())
    assert output.count('twice uses reference for some maps, because it was measured faster than preferred on CPU') == 1


def test_choices_are_stored_on_disk():
    """Another process runs the stored choice for the same kind of call, without measuring."""
    preferred = Calls(seconds=0.01)
    op = twice(preferred, Calls())
    op(X)
    trials = preferred.count
    (choice,) = read_choices(device_name(CPU)).values()
    assert choice.row == 'reference' and choice.milliseconds['preferred'] > choice.milliseconds['reference']
    for again in (X, torch.randn(1, 4, 5, 5), torch.randn(2, 4, 4, 4)):  # 17 to 32 positions
        op(again)
        clear_choices()
    assert preferred.count == trials
    op(torch.randn(1, 4, 6, 6))
    assert preferred.count > trials


@pytest.mark.parametrize(
    'other',
    [
        X.double(),
        X.contiguous(memory_format=torch.channels_last),
        X.repeat(1, 2, 1, 1),
        X.repeat(2, 1, 1, 1),
        X.clone().requires_grad_(),
    ],
    ids=['dtype', 'layout', 'channels', 'images', 'gradients'],
)
def test_different_kinds_of_calls_are_distinguished(other):
    assert kind_of_call('twice', (X,)) != kind_of_call('twice', (other,))


@pytest.mark.parametrize(
    'preferred, message',
    [
        (Calls(add=0.1), r'the implementation preferred of twice of \(1, 4, 6, 4\), .* differs from the reference'),
        (Calls(add=float('nan')), 'differs from the reference'),
        (Calls(error=RuntimeError('no such\nkernel')), r'the implementation preferred of twice .* fails \(no such\)'),
        (Calls(error=TypeError('broken')), r'fails \(broken\)'),
        (Calls(error=RuntimeError('out of memory')), r'twice cannot be measured \(out of memory\)'),
    ],
    ids=['wrong', 'nan', 'fails', 'fails_otherwise', 'memory'],
)
def test_failing_or_differing_implementation_is_not_used(capsys, preferred, message):
    op = twice(preferred)
    if 'measured' in message:  # what cannot be tried stays as the table says
        with pytest.raises(RuntimeError, match='out of memory'):
            op(X)
        assert not os.path.exists(path_of_choices(device_name(CPU)))
    else:
        torch.testing.assert_close(op(X), 2 * X)
        assert op.choose(X).name == 'reference'
    assert re.search(message, ''.join(capsys.readouterr()))


def test_failed_measurement_is_not_repeated():
    """If memory is too short to measure, the table decides for the rest of the process."""
    preferred = Calls(error=RuntimeError('out of memory'))
    op = twice(preferred)
    assert op.choose(X).name == 'preferred' and preferred.count == 1
    assert op.choose(X).name == 'preferred' and preferred.count == 1


def test_gradients_are_compared_in_training():
    op = twice(Calls(gradient=3.0))
    assert op.choose(X).name == 'preferred'
    assert op.choose(X.clone().requires_grad_()).name == 'reference'
    assert twice(Calls(gradient=2.0)).choose(torch.randn(3, 5, 2, 2).requires_grad_()).name == 'preferred'


def _compiled(op):
    torch._dynamo.reset()
    torch.compile(lambda x: op(x), backend='eager')(X)


def _counted(op):
    with FlopCounterMode(display=False):
        op(X)


def _deterministic(op):
    torch.use_deterministic_algorithms(True)
    try:
        op(X)
    finally:
        torch.use_deterministic_algorithms(False)


def _by_rules(op):
    with use_ops('rules'):
        op(X)


@pytest.mark.parametrize(
    'call',
    [
        _compiled,
        _counted,
        _deterministic,
        _by_rules,
        lambda op: op(X[:0]),
        lambda op: torch.jit.trace(op, X, check_trace=False),
    ],
    ids=['compiled', 'counted', 'deterministic', 'rules', 'empty', 'traced'],
)
def test_calls_that_are_not_measured(call):
    reference = Calls()
    call(twice(Calls(), reference, when=lambda x: True))
    assert not os.path.exists(path_of_choices(device_name(CPU)))


@pytest.mark.parametrize(
    'capability, vendor, tuned',
    [
        ('AVX2', 'GenuineIntel', True),
        ('AVX512', 'AuthenticAMD', True),
        ('AVX512', 'GenuineIntel', False),
        ('AVX512', '', False),
        ('DEFAULT', 'AuthenticAMD', False),
    ],
)
def test_cpus_that_the_tables_were_tuned_on(monkeypatch, capability, vendor, tuned):
    monkeypatch.setattr(measured, 'TUNED_CPUS', (('AVX2', ''), ('AVX512', 'AuthenticAMD')))
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(measured, 'cpu_vendor', lambda: vendor)
    assert measured.is_untuned(X) != tuned


def test_tuned_cpu_is_not_measured(monkeypatch):
    monkeypatch.setattr(measured, 'TUNED_CPUS', ((torch.backends.cpu.get_cpu_capability(), measured.cpu_vendor()),))
    measured._is_tuned_cpu.cache_clear()
    op = twice(Calls(seconds=0.01), Calls())
    assert op.choose(X).name == 'preferred' and not os.path.exists(path_of_choices(device_name(CPU)))


def test_corrupt_choices_are_measured_again(capsys):
    path = path_of_choices(device_name(CPU))
    os.makedirs(os.path.dirname(path))
    for damaged in ('{', '[]', '{"import os": ["a", {}]}', '{"()": 3}'):
        with open(path, 'w') as file:
            file.write(damaged)
        assert twice(Calls()).choose(X).name == 'preferred'
        clear_choices()
        with open(path) as file:
            assert len(json.load(file)) == 1
    assert 'cannot be read' in ''.join(capsys.readouterr())


def test_rebuilt_kernels_are_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, '__file__', str(tmp_path / 'measured.py'))
    paths = []
    for build in ('one', 'other', 'one'):
        for name in ('conv.py', 'kernels.so', 'notes.txt'):
            (tmp_path / name).write_text(build)
        measured._digest_of_kernels.cache_clear()
        paths.append(path_of_choices('CPU'))
    (tmp_path / 'notes.txt').unlink()
    measured._digest_of_kernels.cache_clear()
    assert paths[0] != paths[1] and paths[0] == paths[2] == path_of_choices('CPU')
    measured._digest_of_kernels.cache_clear()


def test_choice_of_a_missing_implementation_is_measured_again():
    """An implementation that another version had, or that does not apply here."""
    twice(Calls()).choose(X)
    clear_choices()
    other = twice(Calls(), when=lambda x: False)
    assert other.choose(X).name == 'reference'


@pytest.mark.parametrize('existing', ['its folder', 'the file'])
def test_choices_that_cannot_be_written_are_reported(existing, monkeypatch, capsys, tmp_path):
    """As on a read-only file system: the folder cannot be created, or no file in it."""
    (tmp_path / 'file').write_text('')
    if existing == 'its folder':
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
    else:
        os.makedirs(path_of_choices(device_name(CPU)))
    assert twice(Calls()).choose(X).name == 'preferred'
    assert 'are lost when the process ends. Set TORCH_HOME' in ''.join(capsys.readouterr())


def test_networks_agree_with_the_reference():
    """Also with activation checkpointing, whose second forward pass must save the same tensors as the first."""
    torch.manual_seed(0)
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 16, 16, 16), mlp_ratios=(2, 2, 2, 2))
    for options in ({}, {'with_cp': True}, {'mixer_recompute': True}):
        net = fcvit_mm.FCViT(arch, out_indices=(1,), **options)
        x = torch.randn(2, 3, 32, 32)
        results = []
        for mode in ('reference', 'auto', 'auto'):
            with use_ops(mode):
                net.zero_grad()
                output = net(x)[0]
                output.square().mean().backward()
                results.append([output.detach(), *(p.grad.clone() for p in net.parameters())])
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-5)
    assert read_choices(device_name(CPU))


def test_command_lists_calls_with_and_without_a_weight(capsys):
    for vector in (None, torch.ones(4)):
        fcvit_mm.ops.group_norm(X.clone(memory_format=torch.channels_last), vector, vector, 1e-5)
    command.main(['--measured'])
    assert capsys.readouterr().out.count('group_norm  ') == 2


def test_command_lists_the_measurements(capsys):
    command.main(['--measured'])
    assert 'Nothing was measured on CPU' in capsys.readouterr().out
    fcvit_mm.ops.group_norm(X, torch.ones(4), torch.zeros(4), 1e-5)
    fcvit_mm.ops.gelu_(X.clone(memory_format=torch.channels_last))
    command.main(['--measured', 'gelu_'])
    output = capsys.readouterr().out
    assert path_of_choices(device_name(CPU)) in output and 'group_norm' not in output
    assert 'gelu_  17 to 32 positions, 4 channels, float32' in output and 'reference' in output
