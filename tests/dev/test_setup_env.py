"""dev/setup_env.sh: arguments, missing programs, and a second run."""

import os
import shutil
import subprocess

import pytest
from harness import ROOT

SCRIPT = ROOT / 'dev' / 'setup_env.sh'


def run(*arguments, **variables):
    return subprocess.run(
        ['bash', str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=dict(os.environ, **variables)
    )


def test_usage_without_arguments():
    result = run()
    assert result.returncode != 0 and 'usage: dev/setup_env.sh VENV [onedl|openmmlab|light] [all|use]' in result.stderr


def test_unknown_stacks_are_refused(tmp_path):
    result = run(tmp_path / 'venv', 'conda')
    assert result.returncode == 2
    assert result.stderr == "unknown stack 'conda', expected onedl, openmmlab or light\n"


def test_unknown_scopes_are_refused(tmp_path):
    result = run(tmp_path / 'venv', 'onedl', 'most')
    assert result.returncode == 2 and result.stderr == "unknown scope 'most', expected all or use\n"


def test_missing_python_is_reported(tmp_path):
    result = run(tmp_path / 'venv', 'light', PYTHON='python9.9')
    assert result.returncode == 1 and 'no python9.9 found: install Python 3.11' in result.stderr
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize(
    'stack, version, fits', [('light', '3.13', True), ('light', '3.9', False), ('openmmlab', '3.13', False)]
)
def test_python_of_the_system_is_used_if_its_version_is_supported(tmp_path, stack, version, fits):
    """The test replaces `python3` by a script that prints this version and has no venv module."""
    (tmp_path / 'bin').mkdir()
    for name in ('bash', 'dirname', 'cat', 'sha256sum', 'cut'):
        (tmp_path / 'bin' / name).symlink_to(shutil.which(name))
    python = tmp_path / 'bin' / 'python3'
    python.write_text(f'#!/bin/bash\n[[ $2 == *version_info* ]] && echo {version} || exit 1\n')
    python.chmod(0o755)
    (tmp_path / 'bin' / 'id').write_text('#!/bin/bash\necho 1000\n')
    (tmp_path / 'bin' / 'id').chmod(0o755)
    result = run(tmp_path / 'venv', stack, PATH=str(tmp_path / 'bin'), PYTHON='')
    assert result.returncode == 1
    if fits:
        assert (
            f'python3 lacks its venv module or its headers: sudo apt-get install python{version}-venv' in result.stderr
        )
    else:
        assert f"python3 is Python {version}, but stack '{stack}' has packages for 3.11" in result.stderr
        assert 'install one of these, or name it with PYTHON=' in result.stderr
    assert not (tmp_path / 'venv').exists()


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab', 'light'])
def test_second_run_does_nothing(tmp_path, stack):
    """The stamp file contains a hash of everything that determines the environment."""
    text = SCRIPT.read_text()
    begin = text.index('wanted=')
    line = text[begin : text.index('\n', begin)]
    constraints = 'requirements/constraints-openmmlab.txt' if stack == 'openmmlab' else 'requirements/constraints.txt'
    operators = 'compiled' if stack == 'openmmlab' else 'prebuilt'
    wanted = subprocess.run(
        ['bash', '-c', f'constraints={constraints}; operators={operators}; {line}; printf %s "$wanted"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cases = [('all', 'all', True), ('all', 'use', True), ('use', 'use', True), ('use', 'all', False)]
    for done, scope, nothing in cases:
        (tmp_path / '.fcvit_mm-setup').write_text(f'{wanted}-{done}')
        result = run(tmp_path, stack, scope, PYTHON='python9.9', MMCV='prebuilt')
        assert (result.returncode == 0 and not result.stdout + result.stderr) == nothing, (done, scope)
    (tmp_path / '.fcvit_mm-setup').write_text('another version')
    assert run(tmp_path, stack, PYTHON='python9.9').returncode == 1


def test_unknown_kind_of_operators_is_refused(tmp_path):
    result = run(tmp_path / 'venv', 'onedl', MMCV='half')
    assert result.returncode == 2 and result.stderr == 'MMCV=half: expected prebuilt or compiled\n'
