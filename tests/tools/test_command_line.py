"""Commands parse their arguments before they import torch and the libraries."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from harness import ROOT, run_python

COMMANDS = sorted(
    path.relative_to(ROOT / 'tools').as_posix()
    for path in (ROOT / 'tools').rglob('*.py')
    if '__main__' in path.read_text()
)
#: Commands with invalid arguments: exit status or message, and printed text.
WRONG = [
    ('train.py', ['a.py', '--launcher', 'ssh'], 2, "invalid choice: 'ssh'"),
    ('train.py', ['a.py', '--cfg-options', 'a=1', '--resum', '--nothing'], 2, 'unrecognized arguments: --nothing'),
    ('train.py', ['a.py', '--cfg-options', 'a'], '--cfg-options is a, expected KEY=VALUE', ''),
    ('replace_backbone.py', ['a.py', 'b', '--options', 'a'], '--options is a, expected KEY=VALUE', ''),
    ('replace_backbone.py', ['a.py', 'b', '--out', 'c.txt'], '--out is c.txt, expected a file name ending in .py', ''),
    ('download.py', ['--import', 'no_module', '--nothing'], 2, 'unrecognized arguments: --nothing'),
    ('predict.py', ['a.py', 'b.pth', 'c', '--out', 'd', '--format', 'xml'], 2, "invalid choice: 'xml'"),
    ('export.py', ['a.py', 'b.pth', '--out', 'c', '--format', 'xml'], 2, "invalid choice: 'xml'"),
    ('make_dataset.py', ['voc'], 2, "invalid choice: 'voc'"),
    ('app.py', ['--score-thr', '7'], '--score-thr is 7, expected a number from 0 to 1', ''),
    ('visualize.py', [*'abc', '--out-dir', 'd', '--opacity', '2'], '--opacity is 2, expected a number from 0 to 1', ''),
    ('app.py', ['--max-megabytes', '0'], '--max-megabytes is 0, expected a number above 0', ''),
    ('publish_model.py', ['a.pth', 'b', '--shape', '64'], 'need --config', ''),
    ('plot_metric.py', [*'abcdefgh', '--key', 'k', '--out', 'o'], '8 runs, expected at most', ''),
    ('analysis/cam.py', ['a', 'b', 'c', '--out', 'o', '--method', 'x'], 2, "invalid choice: 'x'"),
    ('analysis/report.py', ['a', 'b', 'c', '--out', 'o', '--size', 'x'], '--size is x, expected a height', ''),
    (
        'analysis/attention.py',
        ['a', '--images', 'b', '--out', 'o', '--queries', '2'],
        '--queries is 2, expected Y,X',
        '',
    ),
]
#: Script that runs commands in one fresh interpreter, and prints the exit status, the output and the imports of each.
PROBE = """
import contextlib, io, json, os, runpy, sys
before = set(sys.modules)
found, path = [], list(sys.path)
for tool, arguments in json.loads(sys.argv[1]):
    sys.argv, sys.path[:] = [tool, *arguments], [os.path.dirname(tool), *path]
    printed, status = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as end:
            status = end.code
    imported = {name for name in set(sys.modules) - before if name.split('.')[0] not in sys.stdlib_module_names}
    found.append([status, printed.getvalue(), sorted(imported)])
    for name in imported:
        del sys.modules[name]
print(json.dumps(found))
"""


def probe(calls):
    """Run commands that end while parsing arguments; return the exit status, the output and the imports of each."""
    calls = [(str(ROOT / 'tools' / tool), arguments) for tool, arguments in calls]
    done = subprocess.run(
        [sys.executable, '-c', PROBE, json.dumps(calls)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='module')
def helped():
    """Exit status, output and imports of ``--help`` of each command."""
    return dict(zip(COMMANDS, probe([(command, ['--help']) for command in COMMANDS])))


@pytest.mark.parametrize('command', COMMANDS)
def test_help_imports_only_the_standard_library(helped, command):
    status, printed, imported = helped[command]
    assert status == 0 and printed.startswith(f'usage: {os.path.basename(command)} ') and '--debug' in printed
    own = {'arguments', 'command_line'} if command.startswith('analysis/') else {'command_line'}
    assert set(imported) == {*own, 'fcvit_mm.errors', 'fcvit_mm.options'}


@pytest.mark.parametrize('command', COMMANDS)
def test_help_describes_every_argument_and_its_default(helped, command):
    printed = helped[command][1]
    arguments = printed[re.search('^(positional arguments|options):$', printed, re.M).end() :]
    # A line with a name but no text, neither behind two spaces nor in the next line.
    assert re.findall(r'^  ((?:\S+ )*\S+)\n(?! {4})', arguments, re.M) == []
    assert 'default: [' not in arguments and 'default: None' not in arguments


def test_invalid_arguments_are_reported_before_imports():
    ends = probe((command, arguments) for command, arguments, _, _ in WRONG)
    for (command, _, end, words), (status, printed, imported) in zip(WRONG, ends):
        name = os.path.basename(command)
        assert set(imported) <= {'arguments', 'command_line', 'fcvit_mm.errors', 'fcvit_mm.options'}, name
        if end == 2:
            assert status == 2 and printed.startswith(f'usage: {name} ') and words in printed, (name, status, printed)
        else:
            assert status.startswith(f'{name}: ') and end in status and not printed, (name, status, printed)


def test_copies_of_the_commands_work(tmp_path):
    """The folder .mim of an installed package contains such copies."""
    shutil.copytree(ROOT / 'tools', tmp_path / 'mim' / 'tools')
    for command in ('train.py', 'analysis/report.py'):
        done = subprocess.run(
            [sys.executable, os.path.join('mim', 'tools', command), '--help'],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )
        assert done.returncode == 0 and done.stdout.startswith('usage: '), done.stderr


def test_package_uses_the_modules_that_the_command_imported():
    code = """
import sys
import command_line
assert 'fcvit_mm' not in sys.modules
first = sys.modules['fcvit_mm.errors'], sys.modules['fcvit_mm.options']
import fcvit_mm, fcvit_mm.dependencies
assert (fcvit_mm.errors, fcvit_mm.options) == first
assert issubclass(fcvit_mm.dependencies.MissingPackageError, command_line.UserError)
assert fcvit_mm.FCViT.__name__ in fcvit_mm.registry.MODELS
"""
    done = run_python('-c', f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r})\n{code}')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('arguments', [[], ['--cfg-options', 'a=1']])
def test_missing_package_is_reported(arguments):
    code = f"""
import importlib.util as util, runpy, sys
find = util.find_spec
util.find_spec = lambda name, *more: None if name == 'mmengine' else find(name, *more)
sys.path.insert(0, {str(ROOT / 'tools')!r})
sys.argv = ['get_flops.py', {str(ROOT / 'configs' / 'classification' / 'fcvit_tiny_in1k.py')!r}, *{arguments}]
runpy.run_path({str(ROOT / 'tools' / 'get_flops.py')!r}, run_name='__main__')
"""
    done = run_python('-c', code)
    assert done.returncode == 1 and done.stderr.startswith('get_flops.py: mmengine is not installed.'), done.stderr
    assert 'Traceback' not in done.stderr


def test_error_if_fcvit_mm_is_not_installed():
    code = f'import sys; sys.path.insert(0, {str(ROOT / "tools")!r}); import command_line'
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == (
        f'-c: {sys.executable} has no package fcvit_mm: activate the environment (source .venv/bin/activate), or '
        'install the package (pip install -e .)\n'
    )
