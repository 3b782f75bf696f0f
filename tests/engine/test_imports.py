import logging

import pytest
from mmengine.config import Config

from fcvit_mm.engine.config import ConfigError, load_config, read_config
from fcvit_mm.engine.imports import circle_of_bases, custom_import_problem, roots_of
from fcvit_mm.errors import LibraryError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with modules in it."""
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


def test_paths_of_missing_modules(folder):
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
    assert custom_import_problem(path) == (
        "importing module_that_fails failed (ModuleNotFoundError: No module named 'module_that_nobody_has'): correct "
        'the module, or install what it needs'
    )
    assert custom_import_problem(write(folder, ['module_that_nobody_has.part'])) == (
        "there is no module 'module_that_nobody_has.part': install its package, or add the folder that contains it to "
        'the path: export PYTHONPATH=FOLDER'
    )


def test_valid_imports(folder):
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


def test_circular_inheritance_is_reported(folder):
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


def write_pure(folder, text):
    """A pure-Python config that inherits from another one."""
    (folder / 'base.py').write_text("default_scope = 'mmpretrain'\n")
    path = folder / 'config.py'
    path.write_text(f'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n{text}\n')
    return str(path)


@pytest.mark.parametrize(
    'imports, use',
    [
        ('from somewhere import scaled', 'lr = scaled(2)'),
        ('import somewhere', 'lr = somewhere.scaled(2)'),
        ('from somewhere import SETTINGS', 'model = dict(SETTINGS, depth=2)'),
        ('from somewhere import LR', 'lr = LR * 2'),
        ('from somewhere import STEPS', 'steps = [*STEPS, 1]'),
    ],
)
def test_imported_names_that_a_pure_python_config_computes_with(folder, imports, use):
    path = write_pure(folder, f'{imports}\n{use}')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f'{path}, line 6, uses an imported name: {use}. In pure-Python configs')
    assert str(caught.value).endswith("import where it is used: __import__('MODULE', fromlist=['NAME']).NAME")


def test_pure_python_configs_that_compute_with_functions(folder, monkeypatch):
    """A config can be written that imports modules of Python itself, or defines functions.

    MMEngine 0.10.7 takes the rest of the standard library for other packages if it is not in the environment's folder.
    """
    (folder / 'a_package').mkdir()
    (folder / 'a_package' / 'a_module.py').write_text('def scaled(x):\n    return 2 * x\n')
    monkeypatch.syspath_prepend(folder)
    text = 'import itertools\n\ndef f(x):\n    return x + next(itertools.count(1))\n\n'
    use = "lr = __import__('a_package.a_module', fromlist=['scaled']).scaled(f(2))"
    cfg = read_config(write_pure(folder, text + use))
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == dict(default_scope='mmpretrain', lr=6)


def test_other_errors_of_pure_python_configs(folder):
    with pytest.raises(LibraryError, match=r'config.py \(line 5\) failed: RuntimeError: no luck \('):
        load_config(write_pure(folder, "raise RuntimeError('no luck')"))
