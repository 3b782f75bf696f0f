"""Releases: checks, written files, and the contents of wheel and sdist."""

import datetime
import importlib
import subprocess
import tarfile
import zipfile

import pytest
from harness import ROOT

from fcvit_mm.errors import UserError

TODAY = datetime.date(2026, 12, 24)
FILES = {
    'fcvit_mm/version.py': "__version__ = '0.1.0'\n",
    'CHANGELOG.md': '# Changelog\n\n## 0.2.0 (unreleased)\n\n- New.\n\n## 0.1.0 (2026-11-25)\n\n- First.\n',
    'CITATION.cff': 'type: software\nversion: 0.1.0\nlicense: Apache-2.0\n',
}


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('release')


@pytest.fixture
def project(tmp_path, release, monkeypatch):
    """A project of three files in a Git repository, whose packages are empty and not tested."""
    root = tmp_path / 'project'
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, 'init', '-q')
    git(root, 'config', 'user.name', 'A Name')
    git(root, 'config', 'user.email', 'name@example.org')
    git(root, 'add', '.')
    git(root, 'commit', '-q', '-m', 'First')

    def build(source, out):
        assert (source / 'fcvit_mm/version.py').read_text() == "__version__ = '0.2.0'\n"
        out.mkdir()
        paths = [out / 'fcvit_mm-0.2.0-py3-none-any.whl', out / 'fcvit_mm-0.2.0.tar.gz']
        write_packages(*paths, release.IN_WHEEL, release.IN_SDIST)
        return paths

    monkeypatch.setattr(release, 'ROOT', root)
    monkeypatch.setattr(release, 'build', build)
    monkeypatch.setattr(release, 'try_package', lambda path, folder, version: f'tried {path.name}')
    return root


def git(root, *arguments):
    return subprocess.run(['git', *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def write_packages(wheel, sdist, in_wheel, in_sdist):
    with zipfile.ZipFile(wheel, 'w') as file:
        for name in in_wheel:
            file.writestr(name, '')
    with tarfile.open(sdist, 'w:gz') as file:
        for name in in_sdist:
            file.addfile(tarfile.TarInfo(f'fcvit_mm-0.2.0/{name}'))


def test_release_is_dated_committed_and_tagged(release, project, tmp_path, capsys):
    (tmp_path / 'work').mkdir()
    release.release('0.2.0', tmp_path / 'work', dry_run=False, today=TODAY)
    assert (project / 'fcvit_mm/version.py').read_text() == "__version__ = '0.2.0'\n"
    assert '## 0.2.0 (2026-12-24)\n\n- New.\n\n## 0.1.0 (2026-11-25)' in (project / 'CHANGELOG.md').read_text()
    citation = (project / 'CITATION.cff').read_text()
    assert citation == "type: software\nversion: 0.2.0\ndate-released: '2026-12-24'\nlicense: Apache-2.0\n"
    assert git(project, 'tag', '--points-at', 'HEAD').strip() == 'v0.2.0'
    assert git(project, 'log', '-1', '--format=%s').strip() == '[Release] 0.2.0'
    assert sorted(path.suffix for path in (project / 'dist').iterdir()) == ['.gz', '.whl']
    assert 'tried fcvit_mm-0.2.0.tar.gz' in capsys.readouterr().out


def test_dry_run_changes_nothing(release, project, tmp_path, capsys):
    (tmp_path / 'work').mkdir()
    release.release('0.2.0', tmp_path / 'work', dry_run=True, today=TODAY)
    assert git(project, 'status', '--porcelain') == '' and git(project, 'tag') == ''
    assert {name: (project / name).read_text() for name in FILES} == FILES
    assert 'neither committed nor tagged' in capsys.readouterr().out


def test_uncommitted_files_are_refused(release, project):
    (project / 'new.py').write_text('')
    with pytest.raises(UserError, match=r'not committed: commit or remove them\n.*new\.py'):
        release.check_tree(project, '0.2.0')


def test_existing_and_older_versions_are_refused(release, project):
    git(project, 'tag', 'v0.2.0')
    with pytest.raises(UserError, match=r'v0\.2\.0 is already tagged'):
        release.check_tree(project, '0.2.0')
    with pytest.raises(UserError, match=r'0\.0\.9 is older than 0\.1\.0'):
        release.check_tree(project, '0.0.9')


def test_prereleases_are_older_than_their_release(release):
    versions = ['0.9.0', '0.10.0a2', '0.10.0b1', '0.10.0rc1', '0.10.0', '0.10.1']
    shuffled = [versions[index] for index in (3, 0, 5, 1, 4, 2)]
    assert sorted(shuffled, key=release.parse_version) == versions
    for wrong in ('1.0', 'v1.0.0', '1.0.0-dev', ''):
        with pytest.raises(UserError, match=r'is not a version, expected X\.Y\.Z'):
            release.parse_version(wrong)


@pytest.mark.parametrize(
    'text, problem',
    [
        ('# Changelog\n\n## 0.1.0 (2026-11-25)\n\n- First.\n', r'has no heading "## 0\.2\.0 \(unreleased\)"'),
        ('## 0.2.0 (unreleased)\n\n## 0.1.0 (2026-11-25)\n\n- First.\n', 'lists nothing under'),
    ],
)
def test_changelog_without_an_entry_is_refused(release, text, problem):
    with pytest.raises(UserError, match=problem):
        release.dated_changelog(text, '0.2.0', TODAY)


@pytest.mark.parametrize('extra', ['dev/release.py', 'fcvit_mm/.mim/dev/x.py', 'tests/test_x.py', 'fcvit_mm/a.so'])
def test_wheel_with_development_files_is_refused(release, tmp_path, extra):
    wheel, sdist = tmp_path / 'a.whl', tmp_path / 'a.tar.gz'
    write_packages(wheel, sdist, [*release.IN_WHEEL, extra], release.IN_SDIST)
    release.check_contents(sdist)
    with pytest.raises(UserError, match=rf'contains \[.*{extra}'):
        release.check_contents(wheel)


def test_missing_files_in_wheel_and_sdist_are_reported(release, tmp_path):
    wheel, sdist = tmp_path / 'a.whl', tmp_path / 'a.tar.gz'
    write_packages(wheel, sdist, release.IN_WHEEL[1:], release.IN_SDIST[:-1])
    for path, name in ((wheel, release.IN_WHEEL[0]), (sdist, release.IN_SDIST[-1])):
        with pytest.raises(UserError, match=rf'lacks .*{name}'):
            release.check_contents(path)


def test_failed_step_is_named(release, tmp_path):
    with pytest.raises(UserError, match=r'building failed with status 128:\nfatal: '):
        release.run(['git', 'log'], tmp_path, 'building', GIT_DIR='/nowhere')


def test_files_of_this_project_can_be_released(release):
    files = release.release_files(ROOT, release.read_version(ROOT), TODAY)
    assert f'({TODAY})' in files['CHANGELOG.md'] and "date-released: '2026-12-24'" in files['CITATION.cff']
