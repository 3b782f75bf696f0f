"""The installed package: a fast import, optional dependencies, pinned versions, a complete wheel."""

import configparser
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from harness import ROOT, run_python

import fcvit_mm


def test_backbone_works_without_the_optional_packages():
    code = (
        'import sys; sys.modules.update(dict.fromkeys(["mmdet", "mmseg", "mmpretrain", "mmcv", "timm"])); '
        'import torch, fcvit_mm; '
        'print(len(fcvit_mm.FCViT("tiny", out_indices=(0, 1))(torch.rand(1, 3, 32, 32))))'
    )
    result = run_python('-c', code)
    assert result.stdout.strip() == '2', result.stderr


def test_installation_changes_no_other_packages():
    """The requirements have no versions and no OpenMMLab packages, which exist under two names."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert setup['options']['install_requires'].split() == ['numpy', 'torch']


def test_wheel_contains_the_files_for_mim(tmp_path):
    source = tmp_path / 'source'
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip('not a git checkout')
    for name in filter(None, files.stdout.split('\0')):
        if not name.startswith(('tests/', 'docs/')) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            str(tmp_path),
            str(source),
        ],
        capture_output=True,
        text=True,
        env=dict(os.environ, FCVIT_MM_NATIVE='0'),
    )  # compiling takes half a minute
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob('*.whl')
    assert fcvit_mm.__version__ in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        'model-index.yml',
        'configs/detection/mask_rcnn_fcvit_b12_coco.py',
        'configs/detection/_base_/default_runtime.py',
        'configs/classification/metafile.yml',
        'tools/train.py',
        'tools/dist_train.sh',
    ):
        assert f'fcvit_mm/.mim/{name}' in names
    assert 'fcvit_mm/models/fcvit.py' in names
    assert not any('__pycache__' in name for name in names)
    # Only the package and its metadata, no files for development.
    assert {name.split('/')[0] for name in names} == {'fcvit_mm', f'fcvit_mm-{fcvit_mm.__version__}.dist-info'}
    shipped = {name.split('/')[2] for name in names if name.startswith('fcvit_mm/.mim/')}
    assert shipped == {'model-index.yml', 'configs', 'tools'}
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith('/METADATA'))).decode()
    for extra in ('cls', 'det', 'seg', 'all', 'openmmlab'):
        assert f'Provides-Extra: {extra}' in metadata


def test_import_is_fast_and_imports_no_other_packages():
    """At most 1.5 seconds in addition to torch and MMEngine, in the best of five attempts: the machine may be busy.

    MMEngine's models and runner, which it imports lazily, take a second and do not count. In addition, only this
    package and a few modules of the standard library are imported.
    """
    parts = 'torch, mmengine, mmengine.runner, mmengine.model, mmengine.hooks, mmengine.optim, mmengine.fileio'
    code = (
        f'import sys, time, {parts}; before = set(sys.modules); start = time.process_time(); import fcvit_mm; '
        'print(time.process_time() - start); '
        'new = {name.split(".")[0] for name in set(sys.modules) - before}; '
        'print(sorted(new - set(sys.stdlib_module_names) - {"torch", "mmengine"}))'
    )
    times = []
    for _ in range(5):
        seconds, brought = run_python('-c', code).stdout.splitlines()
        assert brought == "['fcvit_mm']"
        times.append(float(seconds))
        if times[-1] < 1.5:
            return
    raise AssertionError(f'importing fcvit_mm took {times} seconds of processor time')


def test_environment_has_no_conflicts():
    result = subprocess.run([sys.executable, '-m', 'pip', 'check'], capture_output=True, text=True)
    assert result.returncode == 0 and 'No broken requirements found' in result.stdout, result.stdout


def pinned_lines(name):
    text = (ROOT / 'requirements' / name).read_text()
    return [line for line in text.splitlines() if not line.startswith('#')]


def pins(name):
    pattern = r'(\S+)==(\S+?)( ; python_version .*)?'
    return dict(re.fullmatch(pattern, line).groups()[:2] for line in pinned_lines(name))


@pytest.mark.parametrize('name', ['constraints.txt', 'constraints-openmmlab.txt'])
def test_all_requirements_have_exact_pins(name):
    packaging = pytest.importorskip('packaging.requirements')
    pinned = {key.lower().replace('_', '-'): version for key, version in pins(name).items()}
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    extras = setup['options.extras_require']
    stack = (
        ('openmmlab',) if 'openmmlab' in name else ('cls', 'det', 'seg', 'analysis', 'export', 'app', 'test-browser')
    )
    for extra in (*stack, 'test', 'lint'):
        for line in extras[extra].split('\n'):
            if line.strip():
                wanted = packaging.Requirement(line)
                key = wanted.name.lower().replace('_', '-')
                assert key in pinned, f'{wanted} of extra {extra} has no pin'
                assert wanted.specifier.contains(pinned[key]), f'{pinned[key]} is not {wanted}'


def test_pinned_packages_accept_the_first_python_of_each_version():
    """Debian 12 has Python 3.11.2: if a pinned package needs 3.11.5, the search of pip never ends."""
    requirements = pytest.importorskip('packaging.requirements')
    specifiers = pytest.importorskip('packaging.specifiers')
    refusing = []
    for line in pinned_lines('constraints.txt'):
        pin = requirements.Requirement(line)
        try:
            found = metadata.distribution(pin.name)
        except metadata.PackageNotFoundError:
            continue
        wanted = specifiers.SpecifierSet(found.metadata.get('Requires-Python') or '')
        versions = [
            each for each in ('3.11', '3.13') if not pin.marker or pin.marker.evaluate({'python_version': each})
        ]
        if pin.specifier.contains(found.version) and not all(wanted.contains(f'{each}.0') for each in versions):
            refusing.append(f'{pin} ({wanted})')
    assert refusing == []


def test_installed_dependencies_of_extras_are_pinned():
    """All installed packages that the extras require, directly or indirectly, have exact versions."""
    markers = pytest.importorskip('packaging.requirements')
    stacks = {
        'constraints.txt': [
            'onedl-mmpretrain',
            'onedl-mmdetection',
            'onedl-mmsegmentation',
            'grad-cam',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'gradio',
            'selenium',
        ],
        'constraints-openmmlab.txt': ['mmpretrain', 'mmdet', 'mmsegmentation', 'mmcv'],
    }
    name, packages = next((item for item in stacks.items() if has(item[1][0])), (None, None))
    if name is None:
        pytest.skip('neither stack is installed')
    pinned = {key.lower().replace('_', '-') for key in pins(name)}
    waiting, seen = ['torch', 'torchvision', 'timm', *packages], set()
    while waiting:
        name = waiting.pop().lower().replace('_', '-')
        if name in seen or not has(name):
            continue
        seen.add(name)
        for line in metadata.requires(name) or []:
            wanted = markers.Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({'extra': ''}):
                waiting.append(wanted.name)
    # torch requires exact versions of NVIDIA's packages.
    floating = {name for name in seen - pinned if not name.startswith(('nvidia-', 'cuda-'))}
    assert not floating


def has(name):
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
