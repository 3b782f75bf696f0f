"""Invalid arguments and output paths are refused before anything is measured or written."""

import subprocess
from pathlib import Path

import pytest
from harness import ROOT

from fcvit_mm.errors import UserError
from fcvit_mm.files import WriteError

pytest.importorskip('timm')
BENCHMARK = ROOT / 'dev' / 'benchmark'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--networks', 'fcvit_b13'], "unknown network 'fcvit_b13', expected one of ours .*fcvit_b12.*convnext_tiny"),
        (['--networks', 'resnet50@int8'], "unknown dtype 'int8', expected one of float32, bfloat16, float16"),
        (['--networks', 'resnet50', 'resnet50'], 'contains resnet50 more than once'),
        (
            ['--networks', 'resnet50', '--baseline', 'fcvit_b12'],
            '--baseline is fcvit_b12, expected one of --networks .resnet50',
        ),
        (['--networks', 'resnet50', '--size', '32x'], '--size is 32x, expected a height and a width in pixels'),
        (['--networks', 'resnet50', '--batch', '0'], '--batch is 0, expected at least 1'),
        (['--networks', 'resnet50', '--rounds', '0'], '--rounds is 0, expected at least 1'),
        (['--networks', 'resnet50', '--device', 'tpu'], '--device is tpu, expected cpu, cuda or cuda:N'),
        (['--networks', 'resnet50', '--device', 'cuda:99'], 'sees [0-9]+ CUDA devices: use'),
    ],
)
def test_invalid_arguments_are_refused(load, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        load('speed').main([*arguments, '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'name, given, out, reason',
    [
        ('speed', ['--networks', 'fcvit_tiny'], 'file', 'Not a directory'),
        ('sizes', ['--networks', 'fcvit_tiny'], 'file', 'Not a directory'),
        ('dense_step', ['a.py'], 'file', 'Not a directory'),
        ('time_kernels', [], 'file', 'Not a directory'),
        ('runtimes', ['a.py', '--files', 'new'], '.', 'Is a directory'),
        ('runtimes', ['a.py', '--files', 'file'], 'a.json', 'Not a directory'),
        ('whole_models', ['a.py'], 'file/a.json', 'Not a directory'),
        ('model_gpu', ['--networks', 'fcvit_tiny'], '.', 'Is a directory'),
    ],
)
def test_output_path_is_checked_first(load, tmp_path, monkeypatch, name, given, out, reason):
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('')
    monkeypatch.setattr('sys.argv', [name, *given, '--out', out])
    with pytest.raises(WriteError, match=f'^{"file" if "file" in given else out} could not be written: {reason}'):
        load(name).main()
    assert list(tmp_path.iterdir()) == [tmp_path / 'file']


@pytest.mark.parametrize('script', ['cpu.sh', 'gpu.sh'])
def test_scripts_contain_valid_commands(load, tmp_path, script):
    """Python is replaced by a script that prints its arguments, and the printed commands are parsed."""
    stand_in = tmp_path / 'python'
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        [str(BENCHMARK / script), str(tmp_path / 'out')],
        text=True,
        check=True,
        capture_output=True,
        env={'PATH': '/usr/bin:/bin', 'PYTHON': str(stand_in)},
    )
    networks = load('timed_networks')
    for line in done.stdout.splitlines():
        path, *arguments = line.split()
        if path == '-m':
            assert all((ROOT / argument).exists() for argument in arguments if argument.startswith('tests'))
            continue
        args = load(Path(path).stem).parse_args(arguments)
        if path.endswith('speed.py'):
            for label in args.networks:
                networks.parse_network(label, args.dtype)
            assert set(args.baseline or []) <= set(args.networks)
        elif path.endswith('dense_step.py'):
            assert (ROOT / args.config).is_file()
