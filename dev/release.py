"""Release a version: check, build wheel and sdist, try both in empty environments, commit and tag.

    python dev/release.py 0.1.0 --dry-run

Everything happens in a clone of the last commit, so a failure or --dry-run changes nothing in your checkout. In the
clone the script sets the version, and today's date in CHANGELOG.md and CITATION.cff. Wheel and sdist are each installed
with pip in an environment of their own (torch's download takes minutes), in which dev/quick_demo.py runs. Only then are
the files committed and tagged in your checkout, and wheel and sdist copied to dist/. Pushing is left to you.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

from fcvit_mm.errors import UserError, command_parser, run_command
from fcvit_mm.files import write_all_atomic

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = 'fcvit_mm/version.py'
CHANGELOG = 'CHANGELOG.md'
CITATION = 'CITATION.cff'
UNRELEASED = 'unreleased'
#: Versions that are installed in the environments.
CONSTRAINTS = ROOT / 'requirements' / 'constraints.txt'
#: Files that must be in the wheel: where mim looks for them, and the marker of a typed package.
IN_WHEEL = (
    'fcvit_mm/.mim/configs/classification/fcvit_tiny_shapes.py',
    'fcvit_mm/.mim/configs/detection/metafile.yml',
    'fcvit_mm/.mim/tools/train.py',
    'fcvit_mm/.mim/tools/dist_train.sh',
    'fcvit_mm/.mim/model-index.yml',
    'fcvit_mm/py.typed',
)
#: Files that must be in the sdist, from which a wheel is built.
IN_SDIST = (
    'LICENSE',
    'model-index.yml',
    'setup.py',
    'configs/classification/fcvit_tiny_shapes.py',
    'tools/train.py',
    'fcvit_mm/py.typed',
    'fcvit_mm/ops/native/operators.cpp',
    'fcvit_mm/ops/native/kernels.h',
)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('version', help='version to release, X.Y.Z, X.Y.Za1, X.Y.Zb1 or X.Y.Zrc1')
    parser.add_argument('--dry-run', action='store_true', help='stop before commit and tag')
    parser.add_argument('--keep', metavar='DIR', help='empty working folder, which is kept (default: a temporary one)')
    return parser.parse_args(argv)


def run(command: Sequence[object], folder: Path, doing: str, **environment: str) -> str:
    """Run a command and return its output.

    Raises:
        UserError: It failed; with the end of its output.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise UserError(f'{doing} failed with status {done.returncode}:\n' + done.stdout[-3000:].rstrip())
    return done.stdout


def parse_version(text: str) -> tuple:
    """Return a version as a tuple that sorts; candidates sort before their release.

    Raises:
        UserError: The text is not a version.
    """
    match = re.fullmatch(r'(\d+)\.(\d+)\.(\d+)(?:(a|b|rc)(\d+))?', text)
    if match is None:
        raise UserError(f'{text!r} is not a version, expected X.Y.Z, X.Y.Za1, X.Y.Zb1 or X.Y.Zrc1')
    numbers = tuple(int(part) for part in match.groups()[:3])
    return (*numbers, match[4] or 'release', int(match[5] or 0))


def read_version(root: Path) -> str:
    """Return the version that the package has now."""
    found = re.search(r"__version__ = '([^']+)'", (root / VERSION_FILE).read_text())
    if found is None:
        raise UserError(f"{VERSION_FILE} has no line __version__ = '...'")
    return found[1]


def check_tree(root: Path, version: str) -> None:
    """Check that the version can be released from here.

    Raises:
        UserError: A change that is not committed, a version that is tagged already or older than the present one.
    """
    changed = run(['git', 'status', '--porcelain'], root, 'git status').strip()
    if changed:
        raise UserError(f'{root} has changes that are not committed: commit or remove them\n{changed}')
    if run(['git', 'tag', '--list', f'v{version}'], root, 'git tag').strip():
        raise UserError(f'v{version} is already tagged: release a later version')
    now = read_version(root)
    if parse_version(version) < parse_version(now):
        raise UserError(f'{version} is older than {now}, which {VERSION_FILE} has: release {now} or a later version')


def dated_changelog(text: str, version: str, today: datetime.date) -> str:
    """Return the changelog with the version's date in place of "unreleased".

    Raises:
        UserError: There is no such entry, or it is empty.
    """
    heading = f'## {version} ({UNRELEASED})'
    before, found, entry = text.partition(heading + '\n')
    if not found:
        raise UserError(f'{CHANGELOG} has no heading "{heading}": add one, with what changes for users below it')
    if not re.search(r'^- ', entry.partition('\n## ')[0], re.MULTILINE):
        raise UserError(f'{CHANGELOG} lists nothing under "{heading}": say what changes for users')
    return f'{before}## {version} ({today.isoformat()})\n{entry}'


def release_files(root: Path, version: str, today: datetime.date) -> Dict[str, str]:
    """Return the files that a release changes, by path in the project."""
    citation = re.sub(r'^(version|date-released): .*\n', '', (root / CITATION).read_text(), flags=re.MULTILINE)
    citation = citation.replace('license: ', f"version: {version}\ndate-released: '{today.isoformat()}'\nlicense: ", 1)
    return {
        VERSION_FILE: f"__version__ = '{version}'\n",
        CHANGELOG: dated_changelog((root / CHANGELOG).read_text(), version, today),
        CITATION: citation,
    }


def write(root: Path, files: Dict[str, str]) -> None:
    write_all_atomic({str(root / name): text.encode() for name, text in files.items()})


def build(source: Path, out: Path) -> List[Path]:
    """Build wheel and sdist of a checkout with this environment's setuptools.

    The wheel is the same for every platform and torch: compiled kernels come where pip builds from the sdist.

    Returns:
        list[Path]: Wheel and sdist.
    """
    out.mkdir()
    # Each alone: setuptools leaves its command in sys.argv.
    code = 'import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])'
    for kind in ('build_wheel', 'build_sdist'):
        run([sys.executable, '-c', code, kind, out], source, kind, FCVIT_MM_NATIVE='0')
    return [*out.glob('*.whl'), *out.glob('*.tar.gz')]


def contents(path: Path) -> Set[str]:
    """Return the names of the files in a wheel, or in an sdist without its first folder."""
    if path.suffix == '.whl':
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as file:
        return {member.name.partition('/')[2] for member in file if member.isfile()}


def check_contents(path: Path) -> None:
    """Check that a wheel or sdist contains all required files, and the wheel no files for development.

    Raises:
        UserError: A file is missing, or must not be there.
    """
    names = contents(path)
    wheel = path.suffix == '.whl'
    missing = sorted(set(IN_WHEEL if wheel else IN_SDIST) - names)
    extra = sorted(name for name in names if '__pycache__' in name or name.endswith('.so'))
    if wheel:
        extra += sorted(name for name in names if re.match(r'(fcvit_mm/\.mim/)?(dev|tests|docs)/', name))
    if missing or extra:
        raise UserError(f'{path.name} lacks {missing} and contains {extra}: correct MANIFEST.in, setup.py or setup.cfg')


def try_package(path: Path, folder: Path, version: str) -> str:
    """Install a wheel or sdist into an empty environment and run dev/quick_demo.py there.

    Returns:
        str: The demo's output.
    """
    environment = folder / f'environment-{"wheel" if path.suffix == ".whl" else "sdist"}'
    venv.create(environment, with_pip=True)
    python = environment / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--disable-pip-version-check', '-q', '-c', CONSTRAINTS]
    doing = f'installing {path.name}'
    run([*pip, 'setuptools', 'wheel', 'psutil', 'packaging', 'torch', 'torchvision', 'numpy'], folder, doing)
    # Built without torch, mmcv has no compiled operators and takes seconds; pip's cache may contain another build.
    run([*pip, '--no-cache-dir', 'onedl-mmcv'], folder, doing)
    run([*pip, '--no-build-isolation', f'{path}[cls]'], folder, doing, FCVIT_MM_NATIVE='0')
    if not can_import(python, 'cv2', folder):  # a machine without a display lacks libGL
        run([*pip, '--force-reinstall', '--no-deps', 'opencv-python-headless'], folder, doing)
    work = folder / f'demo-{environment.name}'
    work.mkdir()
    shutil.copy2(ROOT / 'dev' / 'quick_demo.py', work)
    return run([python, 'quick_demo.py', '--version', version], work, f'the quick demo with {path.name}', PYTHONPATH='')


def can_import(python: Path, module: str, folder: Path) -> bool:
    return subprocess.run([python, '-c', f'import {module}'], cwd=folder, capture_output=True).returncode == 0


def release(version: str, folder: Path, dry_run: bool, today: datetime.date) -> None:
    """Release a version, working in ``folder``; the steps, in order."""
    check_tree(ROOT, version)
    files = release_files(ROOT, version, today)

    clone = folder / 'source'
    run(['git', 'clone', '-q', ROOT, clone], folder, 'git clone')
    write(clone, files)
    packages = build(clone, folder / 'dist')
    for path in packages:
        check_contents(path)
        print(f'{path.name}: {path.stat().st_size >> 10} KiB, {len(contents(path))} files', flush=True)
    for path in packages:
        print(f'== {path.name} in an empty environment', flush=True)
        print(try_package(path, folder, version), flush=True)

    if dry_run:
        print(f'dry run: v{version} is neither committed nor tagged')
        return
    write(ROOT, files)
    run(['git', 'commit', '-q', '-m', f'[Release] {version}', '--', *files], ROOT, 'git commit')
    run(['git', 'tag', '-a', f'v{version}', '-m', f'fcvit_mm {version}'], ROOT, 'git tag')
    (ROOT / 'dist').mkdir(exist_ok=True)
    for path in packages:
        shutil.copy2(path, ROOT / 'dist')
    print(f'tagged v{version}; dist/ contains wheel and sdist. To publish: git push --follow-tags, and upload dist/')


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    parse_version(args.version)
    today = datetime.date.today()
    if args.keep is None:
        with tempfile.TemporaryDirectory(prefix='fcvit_mm-release-') as folder:
            release(args.version, Path(folder), args.dry_run, today)
        return
    folder = Path(args.keep).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f'--keep {folder} is not empty: give a new folder')
    release(args.version, folder, args.dry_run, today)


if __name__ == '__main__':
    run_command(main)
