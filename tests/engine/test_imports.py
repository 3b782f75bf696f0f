import logging

import pytest

from fcvit_mm.engine.config import ConfigError, load_config
from fcvit_mm.engine.imports import circle_of_bases, custom_import_problem, roots_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with modules, which is the current one."""
    (tmp_path / 'projects' / 'foo').mkdir(parents=True)
    (tmp_path / 'projects' / 'foo' / 'part_of_foo.py').touch()
    (tmp_path / 'sub' / 'package_in_sub').mkdir(parents=True)
    (tmp_path / 'sub' / 'package_in_sub' / '__init__.py').touch()
    (tmp_path / 'sub' / 'module_in_sub.py').touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, imports, more=''):
    path = folder / 'config.py'
    path.write_text(f"default_scope = 'mmpretrain'\ncustom_imports = dict(imports={imports!r}{more})\n")
    return str(path)


@pytest.mark.parametrize(
    ('name', 'module', 'root'),
    [
        ('projects/foo/part_of_foo.py', 'projects.foo.part_of_foo', ''),
        ('./projects/foo/part_of_foo', 'projects.foo.part_of_foo', ''),
        ('projects\\foo\\part_of_foo.py', 'projects.foo.part_of_foo', ''),
        ('projects.foo.part_of_foo.py', 'projects.foo.part_of_foo', ''),
        ('{folder}/sub/module_in_sub.py', 'module_in_sub', 'sub'),
        ('sub/package_in_sub', 'sub.package_in_sub', ''),
    ],
)
def test_paths_in_place_of_modules(folder, name, module, root):
    name = name.format(folder=folder)
    path = write(folder, [name])
    expected = (
        f'{name!r} is not the name of a module: write it as in an import statement, imports=[{module!r}], and add its '
        f'folder to the path: export PYTHONPATH={folder / root}'
    )
    assert custom_import_problem(path) == expected
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f'{path}: custom_imports: {expected}'


def test_paths_of_nothing(folder):
    assert custom_import_problem(write(folder, ['./nothing.py'])) == (
        "'./nothing.py' is not the name of a module: write it as in an import statement, imports=['nothing']"
    )


@pytest.mark.parametrize('name', ['module_in_sub', 'package_in_sub'])
def test_modules_of_another_folder(folder, name):
    path = write(folder, name)  # without a list, which MMEngine accepts
    assert custom_import_problem(path) == (
        f'{name!r} is in {folder / "sub"}, which is not on the path: export PYTHONPATH={folder / "sub"}'
    )
    with pytest.raises(ConfigError, match=f'custom_imports: {name!r} is in '):
        load_config(path)


def test_modules_that_fail(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    (folder / 'module_that_fails.py').write_text('import module_that_nobody_has\n')
    path = write(folder, ['module_that_fails'])
    monkeypatch.setattr('fcvit_mm.engine.imports.roots_of', lambda config: iter(()))
    assert custom_import_problem(path) == (
        "importing module_that_fails failed (ModuleNotFoundError: No module named 'module_that_nobody_has'): correct "
        'the module, or install what it needs'
    )
    assert custom_import_problem(write(folder, ['module_that_nobody_has.part'])) == (
        "there is no module 'module_that_nobody_has.part': install its package, or add the folder that contains it to "
        'the path: export PYTHONPATH=FOLDER'
    )


def test_nothing_is_wrong(folder):
    assert custom_import_problem(write(folder, ['json'])) == ''
    assert load_config(write(folder, ['json'])).default_scope == 'mmpretrain'


def test_failures_that_the_config_allows(folder, capsys, caplog):
    path = write(folder, ['projects/foo/part_of_foo.py'], ', allow_failed_imports=True')
    with pytest.warns(UserWarning, match='failed to import and is ignored'), caplog.at_level(logging.WARNING):
        load_config(path)
    assert 'is not the name of a module: write it as in an import statement' in caplog.text + capsys.readouterr().out


def test_folders_that_are_searched(folder):
    (folder / 'configs').mkdir()
    found = list(roots_of(str(folder / 'configs' / 'a.py')))
    assert found[0] == str(folder) and {str(folder / 'configs'), str(folder / 'sub')} <= set(found)


def test_configs_that_inherit_in_a_circle(folder):
    a, b, c = (folder / f'{name}.py' for name in 'abc')
    a.write_text("_base_ = './b.py'\n")
    b.write_text("_base_ = ['./c.py', './gone.py']\n")
    c.write_text("_base_ = './b.py'\n")
    assert circle_of_bases(str(a)) == [str(b), str(c), str(b)]
    with pytest.raises(ConfigError) as caught:
        load_config(str(a))
    assert str(caught.value) == f'{a} inherits in a circle: {b} -> {c} -> {b}. Remove one of these _base_'
    c.write_text('')
    assert circle_of_bases(str(a)) == []
