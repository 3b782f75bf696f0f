"""Advice for modules and files that a config names and MMEngine does not find."""

import importlib
import os
import os.path as osp
import traceback
from pathlib import Path
from typing import Iterator, List

from mmengine.config import Config, lazy

#: Number of folders above a config that are searched for a module.
LEVELS = 4
#: Functions of MMEngine that read a config file, each from its argument ``filename``.
READERS = ('_file2dict', '_is_lazy_import', '_parse_lazy_import')


def custom_import_problem(path: str) -> str:
    """Describe the first of a config's ``custom_imports`` that cannot be imported; empty if all can.

    Args:
        path (str): File of the config, which can be read.
    """
    for name in custom_imports(Config.fromfile(path, import_custom_modules=False)):
        try:
            importlib.import_module(name)
        except Exception as error:
            # Broad, because the modules may be from anywhere.
            text = path_instead_of_module(name, path)
            if text:
                return text
            if isinstance(error, ModuleNotFoundError) and error.name and (name + '.').startswith(error.name + '.'):
                return module_elsewhere(name, path) or (
                    f'there is no module {name!r}: install its package, or add the folder that contains it to the '
                    'path: export PYTHONPATH=FOLDER'
                )
            return (
                f'importing {name} failed ({type(error).__name__}: {error}): correct the module, or install what it '
                'needs'
            )
    return ''


def custom_imports(cfg: Config) -> List[str]:
    """Return the names in a config's ``custom_imports``."""
    given = cfg.get('custom_imports') or {}
    names = given.get('imports') if isinstance(given, dict) else None
    return [name for name in ([names] if isinstance(names, str) else names or []) if isinstance(name, str)]


def path_instead_of_module(name: str, config: str) -> str:
    """Describe a path or file name that is given in place of a module name; empty for other names.

    Args:
        name (str): The name in the config.
        config (str): File of the config.
    """
    if not ('/' in name or '\\' in name or name.endswith('.py') or name.startswith('.')):
        return ''
    file = name.replace('\\', '/')
    if file.endswith('.py'):
        file = file[:-3]
    if '/' not in file:
        file = file.lstrip('.').replace('.', '/')
    file = osp.normpath(file)
    folder, module = (osp.dirname(file), osp.basename(file)) if osp.isabs(file) else ('', file.replace('/', '.'))
    roots = [folder] if folder else list(roots_of(config))
    root = next((each for each in roots if is_module(each, module)), '')
    where = f', and add its folder to the path: export PYTHONPATH={root}' if root else ''
    return (
        f'{name!r} is not the name of a module: write it as in an import statement, imports=[{module.lstrip(".")!r}]'
        f'{where}'
    )


def module_elsewhere(name: str, config: str) -> str:
    """Describe where a module is that cannot be imported; empty if it is not near the config."""
    root = next((each for each in roots_of(config) if is_module(each, name)), '')
    return f'{name!r} is in {root}, which is not on the path: export PYTHONPATH={root}' if root else ''


def roots_of(config: str) -> Iterator[str]:
    """Yield the folders in which a config's modules are searched: the current one, the config's, and those above it."""
    here, own = Path.cwd(), Path(config).absolute().parent
    above = [own, *own.parents][:LEVELS]
    below = [each for folder in (here, own) for each in sorted(folder.iterdir()) if each.is_dir()]
    yield from dict.fromkeys(str(each) for each in (here, *above, *below) if os.access(each, os.R_OK))


def is_module(root: str, name: str) -> bool:
    """Check whether a folder contains a module or a package of a name."""
    file = Path(root, *name.split('.'))
    return file.with_name(f'{file.name}.py').is_file() or (file / '__init__.py').is_file()


def circle_of_bases(path: str) -> List[str]:
    """Return the configs that inherit from each other in a circle, the first of them at the end again."""
    chain = [osp.abspath(path)]

    def follow() -> bool:
        for base in Config._get_base_files(chain[-1]):
            base = osp.abspath(osp.join(osp.dirname(chain[-1]), str(base)))
            if base in chain:
                chain[:] = [*chain[chain.index(base) :], base]
                return True
            if osp.isfile(base):
                chain.append(base)
                if follow():
                    return True
                chain.pop()
        return False

    return chain if follow() else []


def place_in_configs(error: BaseException, path: str) -> str:
    """Return the place, in a config or one that it inherits from, at which reading it failed; empty if not known.

    Args:
        error (BaseException): As reading the config raised it. The place is removed from a syntax error's own message,
            which does not know the file.
        path (str): File of the config.
    """
    file, line = '', None
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename == Config.fromfile.__code__.co_filename and code.co_name in READERS:
            file, line = frame.f_locals['filename'], None
        elif code.co_filename == file:
            line = number
    if isinstance(error, SyntaxError) and error.filename in (None, '<unknown>'):
        line, error.filename, error.lineno = error.lineno, None, None
    if line is None:
        return ''
    own = osp.realpath(file) == osp.realpath(path)
    return f' (line {line})' if own else f' ({osp.relpath(file)}, line {line})'


def deferred_import_problem(error: BaseException) -> str:
    """Describe the use of an imported name in a pure-Python config before MMEngine imports it; empty without one.

    MMEngine puts a placeholder in its place. Calling that raises a ``RuntimeError`` without a message.

    Args:
        error (BaseException): As reading the config raised it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    in_placeholder = bool(frames) and frames[-1].filename == lazy.__file__
    if not in_placeholder and not any(name in str(error) for name in ('LazyObject', 'LazyAttr')):
        return ''
    if in_placeholder and not isinstance(error, RuntimeError):
        return ''
    frame = [each for each in frames if each.filename != lazy.__file__][-1]
    return (
        f'{frame.filename}, line {frame.lineno}, uses an imported name: {frame.line}. In pure-Python configs (with '
        'read_base) an imported name can only be an entry, such as type=NAME, because MMEngine imports it later. Write '
        "the value, or import where it is used: __import__('MODULE', fromlist=['NAME']).NAME"
    )
